"""Training through a daemon is the training that plain torch does in one process.

Both compute the same sums, in another order: a batch of B samples here is cut into parts of B/W there, whose
gradients the daemon averages. So both are float32 roundings of one trajectory, and how far such roundings lie
apart after 100 steps depends on the rule and the data: AdamW moves an element whose gradient is nearly zero by its
sign. The ruler is therefore what rounding does to torch itself: the distance between its float32 and its float64
trajectory. Two independent roundings lie at most about twice that apart; the bound is four times.
"""

import copy
import csv
import threading
from pathlib import Path

import paramd
import paramd.torch
import pytest
import torch

DIGITS = Path(__file__).resolve().parents[2] / "client" / "data" / "digits.csv"
STEPS = 100
BATCH = 48
WORKERS = [1, 2, 4]
SHARDS = [1, 2, 3]

torch.set_num_threads(1)
# The workers are threads of one program. Where torch multiplies matrices with a library for programs of one thread, as
# Debian's libopenblas0-serial is, two of them at once now and then get wrong products, without paramd too.
COMPUTING = threading.Lock()


def load():
    with open(DIGITS, newline="") as file:
        rows = [list(map(float, row)) for row in csv.reader(file) if row[0].lstrip("-").replace(".", "").isdigit()]
    data = torch.tensor(rows, dtype=torch.float64)
    return data[:, :64] / 16, data[:, 64].long()


IMAGES, LABELS = load()


torch.manual_seed(3)
INITIAL = torch.nn.Sequential(
    torch.nn.Linear(64, 40), torch.nn.Tanh(), torch.nn.Linear(40, 20), torch.nn.Tanh(), torch.nn.Linear(20, 10)
)


def gradient_of(model, step, begin, end):
    """Of the mean loss over a part of the batch of a step."""
    first = step * BATCH % (len(IMAGES) - BATCH)
    dtype = next(model.parameters()).dtype
    images = IMAGES[first + begin : first + end].to(dtype)
    with COMPUTING:
        loss = torch.nn.functional.cross_entropy(model(images), LABELS[first + begin : first + end])
        loss.backward()


class Case:
    """A daemon's configuration and the same in torch."""

    def __init__(self, config, optimizer, schedule=None, clip=None):
        self.config = config
        self.optimizer = optimizer
        self.schedule = schedule
        self.clip = clip

    @property
    def micro_batches(self):
        return self.config.get("accumulation_steps", 1)

    def train_plainly(self, dtype):
        model = copy.deepcopy(INITIAL).to(dtype)
        optimizer = self.optimizer(model.parameters())
        schedule = self.schedule and self.schedule(optimizer)
        for step in range(STEPS):
            optimizer.zero_grad()
            gradient_of(model, step, 0, BATCH)
            if self.clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), self.clip)
            optimizer.step()
            if schedule:
                schedule.step()
        return torch.nn.utils.parameters_to_vector(model.parameters()).double()

    def train_as(self, worker, workers, address):
        model = copy.deepcopy(INITIAL)
        part = BATCH // workers // self.micro_batches
        with paramd.torch.Optimizer(model, address, samples_per_step=part, name=f"w{worker}") as optimizer:
            for step in range(STEPS):
                for micro_batch in range(self.micro_batches):
                    begin = (worker * self.micro_batches + micro_batch) * part
                    optimizer.zero_grad()
                    gradient_of(model, step, begin, begin + part)
                    optimizer.step()
            assert optimizer.version == STEPS
            assert optimizer.overlapping
        return torch.nn.utils.parameters_to_vector(model.parameters()).double()


def warmup_and_cosine(optimizer):
    return torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=10),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=90, eta_min=1e-5),
        ],
        milestones=[10],
    )


SGD = {"name": "sgd", "lr": 0.1, "momentum": 0.9}
CASES = {
    "sgd_momentum": Case({"optimizer": SGD}, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
    "accumulation": Case(
        {"optimizer": {**SGD, "nesterov": True}, "accumulation_steps": 3},
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    ),
    "adamw_clip_schedule": Case(
        {
            "optimizer": {"name": "adamw", "lr": 3e-3, "weight_decay": 0.05},
            "clip": {"norm": 0.5},
            "schedule": [
                {"name": "linear", "start_factor": 0.1, "steps": 10},
                {"name": "cosine", "t_max": 90, "eta_min": 1e-5},
            ],
        },
        lambda p: torch.optim.AdamW(p, lr=3e-3, weight_decay=0.05),
        warmup_and_cosine,
        clip=0.5,
    ),
}
PLAIN = {}


def plain(name):
    """The plain trajectory's end, and how far its rounding takes it."""
    if name not in PLAIN:
        exact = CASES[name].train_plainly(torch.float64)
        rounded = CASES[name].train_plainly(torch.float32)
        PLAIN[name] = rounded, (rounded - exact).abs().max().item()
    return PLAIN[name]


@pytest.mark.parametrize("shards", SHARDS)
@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("name", CASES)
def test_parameters_agree_with_plain_torch(start, together, name, workers, shards):
    case = CASES[name]
    expected, ruler = plain(name)
    address = start({**case.config, "workers": {"expected": workers}}, shards).address
    trained = together(*(lambda worker=worker: case.train_as(worker, workers, address) for worker in range(workers)))
    for parameters in trained:
        assert torch.equal(parameters, trained[0])
    error = (trained[0] - expected).abs().max().item()
    print(f"{name} {workers} workers {shards} shards: {error:.2e}, bound {4 * ruler:.2e}")
    assert ruler < 1e-3
    assert error <= 4 * ruler


@pytest.mark.parametrize("workers", [1, 2])
def test_direct_aggregation_gives_the_same_bits_for_any_number_of_shards(start, together, workers):
    case = CASES["adamw_clip_schedule"]
    ends = []
    for shards in SHARDS:
        config = {**case.config, "workers": {"expected": workers}, "aggregation": "direct"}
        address = start(config, shards).address
        ends += together(*(lambda w=worker: case.train_as(w, workers, address) for worker in range(workers)))
    assert all(torch.equal(end, ends[0]) for end in ends)
