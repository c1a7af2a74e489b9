"""A convolutional network learns handwritten digits: the shortest way from a torch loop to paramd.

    python3 client/python/examples/digits.py

starts a daemon of two shards and two workers on this machine. Exit 0 only if 98 % of the test images are told
right. Data: digits.csv beside the C client, 1,797 images of 8 x 8 pixels with their labels.
"""

import csv
import os
import sys
from pathlib import Path

import local
import paramd.torch
import torch
from torch import nn
from torch.nn import functional

BATCH = 64


def load(file):
    """Images (N, 1, 8, 8) from 0 to 1 and labels; every fifth is for the test."""
    with open(file, newline="") as lines:
        table = torch.tensor([list(map(float, row)) for row in csv.reader(lines)])
    images, labels = table[:, :64].view(-1, 1, 8, 8) / 16, table[:, 64].long()
    test = torch.arange(len(table)) % 5 == 0
    return (images[~test], labels[~test]), (images[test], labels[test])


def make_model():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(32 * 16, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def configuration(options):
    warmup = max(options.steps // 10, 1)
    return {
        "workers": {"expected": options.workers},
        "optimizer": {"name": "adamw", "lr": 6e-3, "weight_decay": 0.01},
        "groups": [{"name": "biases", "match": ["*.bias"], "weight_decay": 0}],
        "clip": {"norm": 1.0},
        "schedule": [
            {"name": "linear", "start_factor": 0.1, "steps": warmup},
            {"name": "cosine", "t_max": max(options.steps - warmup, 1), "eta_min": 1e-5},
        ],
    }


def work(options):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = make_model()  # the first worker's parameters are everyone's
    torch.manual_seed(1 + options.index)
    train, test = load(options.data)
    images, labels = (part[options.index :: options.count] for part in train)
    with paramd.torch.Optimizer(model, options.server, samples_per_step=BATCH, name=options.name) as optimizer:
        progress = local.Progress(options, optimizer.version)
        while optimizer.version < options.steps:
            batch = torch.randint(len(images), (BATCH,))
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(images[batch]), labels[batch], label_smoothing=0.1)
            optimizer.describe(loss=loss.item())
            loss.backward()
            optimizer.step()
            progress.show(optimizer.version, BATCH, loss=loss.item(), lr=optimizer.param_groups[0]["lr"])
    model.eval()
    with torch.no_grad():
        right = (model(test[0]).argmax(1) == test[1]).sum().item()
    share = right / len(test[1])
    if options.index == 0:
        print(f"accuracy {share:.4f} ({right} of {len(test[1])} test images) step {optimizer.version}", flush=True)
    return 0 if 100 * share >= options.accuracy else 1


def main():
    parser = local.make_parser(__doc__.splitlines()[0], workers=2, steps=400)
    data = Path(__file__).resolve().parents[2] / "data" / "digits.csv"
    parser.add_argument("--data", default=os.environ.get("PARAMD_DIGITS", data), help="images (%(default)s)")
    parser.add_argument("--accuracy", type=float, default=98, help="least share of test images in %% (%(default)s)")
    options = local.parse(parser)
    return work(options) if options.worker else local.launch(options, configuration(options))


if __name__ == "__main__":
    sys.exit(main())
