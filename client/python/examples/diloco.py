"""Two workers take 50 steps of their own between pushes (DiLoCo), against stepping together each time.

    python3 client/python/examples/diloco.py

trains the same model on the same data twice, each time with a daemon of its own: first synchronously, then with
local steps of torch's AdamW, where the workers push the parameters they ended up with and the daemon takes a step of
Nesterov momentum along the way they have come (``outer: true``). It prints the final loss and the bytes that each
worker sent and received, as the kernel counted them, of both. Exit 0 only if the losses are within 2 % and the
bytes 50 times fewer.
"""

import argparse
import json
import math
import os
import socket
import struct
import sys
import tempfile
from pathlib import Path

import char_gpt
import local
import paramd.torch
import torch
from torch import nn
from torch.nn import functional

CONTEXT = 5
WIDTH = 12
BATCH = 64


def make_model(letter_count):
    """The next letter from the five before it."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Embedding(letter_count, WIDTH),
        nn.Flatten(),
        nn.Linear(CONTEXT * WIDTH, 48),
        nn.Tanh(),
        nn.Linear(48, letter_count),
    )


def pieces(text, begin):
    """The letters before each of some places, and the letters there."""
    around = text[begin[:, None] + torch.arange(CONTEXT + 1)]
    return around[:, :-1], around[:, -1]


class Data:
    """Each worker draws its own pieces of the text; the final loss is that of every third letter."""

    def __init__(self, directory, index):
        self.text, self.letters = char_gpt.load_text(directory)
        self.random = torch.Generator().manual_seed(1 + index)

    def batch(self):
        return pieces(self.text, torch.randint(len(self.text) - CONTEXT, (BATCH,), generator=self.random))

    @torch.no_grad()
    def final_loss(self, model):
        inputs, targets = pieces(self.text, torch.arange(0, len(self.text) - CONTEXT, 3))
        return functional.cross_entropy(model(inputs), targets).item()


def loss_of(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1])


def warmup_steps(options):
    return max(options.steps // 20, 1)


def rate(step, options):
    """What to multiply the learning rate by, as the daemon's schedule below does."""
    warmup = warmup_steps(options)
    if step < warmup:
        return 0.1 + 0.9 * step / warmup
    return 0.01 + 0.99 * (1 + math.cos(math.pi * (step - warmup) / (options.steps - warmup))) / 2


def configuration(options):
    workers = {"workers": {"expected": options.workers}}
    if options.mode == "sync":
        warmup = warmup_steps(options)
        schedule = [
            {"name": "linear", "start_factor": 0.1, "steps": warmup},
            {"name": "cosine", "t_max": options.steps - warmup, "eta_min": options.lr / 100},
        ]
        adamw = {"name": "adamw", "lr": options.lr, "weight_decay": 0.01}
        return {**workers, "optimizer": adamw, "schedule": schedule}
    outer = {"name": "sgd", "lr": options.outer_lr, "momentum": options.outer_momentum, "nesterov": True}
    return {**workers, "outer": True, "optimizer": outer}


def traffic():
    """Bytes that this process's TCP connections have sent (and had acknowledged) and received."""
    total = 0
    for entry in os.listdir("/proc/self/fd"):
        try:
            with socket.socket(fileno=os.dup(int(entry))) as connection:
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 136)
                total += sum(struct.unpack_from("=QQ", info, 120))
        except OSError:
            continue  # no TCP socket
    return total


def train_together(options, model, data, progress):
    """Every step is the daemon's."""
    with paramd.torch.Optimizer(model, options.server, samples_per_step=BATCH, name=options.name) as optimizer:
        before = traffic()
        while optimizer.version < options.steps:
            optimizer.zero_grad()
            loss = loss_of(model, data.batch())
            loss.backward()
            optimizer.step()
            progress.show(optimizer.version, BATCH, loss=loss.item(), lr=optimizer.param_groups[0]["lr"])
        return traffic() - before


def train_apart(options, model, data, progress):
    """Steps are torch's own; every so many of them, the daemon steps along the way they have come."""
    inner = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(inner, lambda step: rate(step, options))
    parameters = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    with paramd.Client(options.server, name=options.name) as client:
        client.register(parameters, out=parameters)  # these arrays are the model's own memory
        before = traffic()
        for step in range(client.version * options.local_steps + 1, options.steps + 1):
            inner.zero_grad()
            loss = loss_of(model, data.batch())
            loss.backward()
            inner.step()
            schedule.step()
            if step % options.local_steps == 0:
                client.step(parameters, samples=BATCH * options.local_steps, loss=loss.item(), out=parameters)
            progress.show(step, BATCH, loss=loss.item(), lr=inner.param_groups[0]["lr"])
        return traffic() - before


def work(options):
    torch.set_num_threads(1)
    data = Data(options.text, options.index)
    model = make_model(len(data.letters))
    train = train_together if options.mode == "sync" else train_apart
    moved = train(options, model, data, local.Progress(options))
    if options.index == 0:
        options.result.write_text(json.dumps({"loss": data.final_loss(model), "bytes": moved}))
    return 0


def run(mode, options, directory):
    """Train one way, with a daemon of its own; returns loss and bytes, or None if that failed."""
    print(f"---- {mode} ----", flush=True)
    options.mode = mode
    result = directory / f"{mode}.json"
    code = local.launch(options, configuration(options), ["--mode", mode, "--result", str(result)])
    return json.loads(result.read_text()) if code == 0 else None


def compare(options):
    """Both ways, one after the other."""
    with tempfile.TemporaryDirectory() as directory:
        sync = run("sync", options, Path(directory))
        apart = sync and run("diloco", options, Path(directory))
    if not apart:
        return 1
    more = 100 * (apart["loss"] / sync["loss"] - 1)
    fewer = sync["bytes"] / apart["bytes"]
    print(f"synchronous: final loss {sync['loss']:.4f}, {sync['bytes'] / 1e6:.2f} MB per worker")
    print(f"{options.local_steps} local steps: final loss {apart['loss']:.4f}, {apart['bytes'] / 1e6:.2f} MB per worker")
    print(f"loss {more:+.2f} % (at most +2 wanted), bytes {fewer:.1f} times fewer", flush=True)
    return 0 if more <= 2 and fewer >= 0.98 * options.local_steps else 1


def main():
    parser = local.make_parser(__doc__.splitlines()[0], workers=2, steps=2000)
    parser.add_argument("--mode", help=argparse.SUPPRESS)  # of a worker, as is
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--local-steps", type=int, default=50, help="steps between pushes (%(default)s)")
    parser.add_argument("--lr", type=float, default=2e-2, help="highest, of each step (%(default)s)")
    parser.add_argument("--outer-lr", type=float, default=1.0, help="(%(default)s)")
    parser.add_argument("--outer-momentum", type=float, default=0.6, help="(%(default)s)")
    parser.add_argument("--text", default=char_gpt.LICENCES, help="directory of texts (%(default)s)")
    options = local.parse(parser)
    if options.server and not options.worker:
        parser.error("--server: each way of training needs a daemon of its own, started here")
    return work(options) if options.worker else compare(options)


if __name__ == "__main__":
    sys.exit(main())
