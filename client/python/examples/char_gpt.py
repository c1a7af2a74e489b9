"""A small GPT learns the licences in /usr/share/common-licenses, letter by letter, with four workers.

    python3 client/python/examples/char_gpt.py

starts a daemon of two shards and the workers on this machine, shows their progress, and ends with a text in the
style of what it has read and a picture of the loss. Gradients and parameters are bfloat16 on the wire. A worker
that is killed is started again, and training goes on meanwhile.
"""

import csv
import sys
from pathlib import Path

import local
import paramd.torch
import torch
from torch import nn
from torch.nn import functional

LICENCES = Path("/usr/share/common-licenses")


def load_text(directory):
    """All of them one after the other, each once, and the letters they have."""
    files = sorted(path for path in Path(directory).iterdir() if path.is_file() and not path.is_symlink())
    text = "\n\n".join(path.read_text(errors="replace") for path in files)
    letters = sorted(set(text))
    number = {letter: index for index, letter in enumerate(letters)}
    return torch.tensor([number[letter] for letter in text]), letters


class Attention(nn.Module):
    def __init__(self, width, heads, context):
        super().__init__()
        self.heads = heads
        self.inputs = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.register_buffer("mask", torch.ones(context, context).tril() == 0)

    def forward(self, x):
        batch, length, width = x.shape
        query, key, value = (
            part.view(batch, length, self.heads, -1).transpose(1, 2) for part in self.inputs(x).chunk(3, dim=2)
        )
        scores = query @ key.transpose(2, 3) * (width // self.heads) ** -0.5
        weights = scores.masked_fill(self.mask[:length, :length], float("-inf")).softmax(3)
        return self.output((weights @ value).transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    def __init__(self, width, heads, context):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, context)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Gpt(nn.Module):
    """Predicts each next letter. The table of letters is shared between input and output."""

    def __init__(self, letter_count, width, layers, heads, context):
        super().__init__()
        self.context = context
        self.letters = nn.Embedding(letter_count, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads, context) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, letter_count, bias=False)
        self.output.weight = self.letters.weight
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, x):
        x = self.letters(x) + self.positions.weight[: x.shape[1]]
        return self.output(self.norm(self.blocks(x)))

    @torch.no_grad()
    def write(self, start, length, generator):
        text = start
        for _ in range(length):
            scores = self(text[None, -self.context :])[0, -1]
            text = torch.cat([text, torch.multinomial((scores / 0.8).softmax(0), 1, generator=generator)])
        return text


def configuration(options):
    warmup = max(options.steps // 10, 1)
    return {
        "workers": {"expected": options.workers, "resume_s": 1},
        "optimizer": {"name": options.rule, "lr": options.lr, "weight_decay": 0.1, "betas": [0.9, 0.99]},
        "groups": [{"name": "no_decay", "match": ["*.bias", "*norm*", "positions.*"], "weight_decay": 0}],
        "clip": {"norm": 1.0},
        "schedule": [
            {"name": "linear", "start_factor": 0.05, "steps": warmup},
            {"name": "cosine", "t_max": max(options.steps - warmup, 1), "eta_min": options.lr / 50},
        ],
    }


def draw(rows, file):
    """Loss and learning rate by step."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    steps, losses, rates = zip(*rows)
    figure, left = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    left.plot(steps, losses, color="tab:blue")
    left.set(xlabel="step", ylabel="loss (nats per letter)", title="char_gpt")
    right = left.twinx()
    right.plot(steps, rates, color="tab:orange")
    right.set_ylabel("learning rate")
    figure.savefig(file, dpi=120)


def finish(options, model, text, letters, rows):
    """What the first worker shows at the end."""
    with open(options.out.with_suffix(".csv"), "w", newline="") as file:
        csv.writer(file).writerows([("step", "loss", "lr"), *rows])
    draw(rows, options.out)
    written = model.write(text[:1], options.sample, torch.Generator().manual_seed(1))
    print("---- it writes:", "".join(letters[index] for index in written), "----", sep="\n")
    last = [loss for _, loss, _ in rows[-20:]]
    print(f"final loss {sum(last) / len(last):.3f} (at most {options.loss:g} wanted), curve: {options.out}", flush=True)
    return 0 if sum(last) / len(last) <= options.loss else 1


def work(options):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    text, letters = load_text(options.text)
    model = Gpt(len(letters), options.width, options.layers, options.heads, options.context)
    rows = []
    with paramd.torch.Optimizer(
        model,
        options.server,
        samples_per_step=options.batch,
        name=options.name,
        wire_dtype="bfloat16",
        pull_dtype="bfloat16",
        bucket_bytes=256 << 10,
    ) as optimizer:
        progress = local.Progress(options, optimizer.version)
        while optimizer.version < options.steps:
            # Which letters a worker reads depends on the step and itself alone, however often it starts.
            random = torch.Generator().manual_seed(optimizer.version * options.count + options.index)
            begin = torch.randint(len(text) - options.context, (options.batch, 1), generator=random)
            batch = text[begin + torch.arange(options.context + 1)]
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
            optimizer.describe(loss=loss.item())
            loss.backward()
            optimizer.step()
            lr = optimizer.param_groups[0]["lr"]
            rows.append((optimizer.version, loss.item(), lr))
            progress.show(optimizer.version, options.batch, loss=loss.item(), lr=lr)
    return finish(options, model, text, letters, rows) if options.index == 0 else 0


def main():
    parser = local.make_parser(__doc__.splitlines()[0], workers=4, steps=600)
    parser.add_argument("--text", default=LICENCES, type=Path, help="directory of texts (%(default)s)")
    parser.add_argument("--rule", choices=["adamw", "lamb"], default="adamw", help="(%(default)s)")
    parser.add_argument("--lr", type=float, default=4e-3, help="highest learning rate (%(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="pieces of text a worker reads in a step (%(default)s)")
    parser.add_argument("--context", type=int, default=64, help="letters in a piece (%(default)s)")
    parser.add_argument("--width", type=int, default=96, help="(%(default)s)")
    parser.add_argument("--layers", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--heads", type=int, default=4, help="(%(default)s)")
    parser.add_argument("--loss", type=float, default=1.9, help="most that counts as learned (%(default)s)")
    parser.add_argument("--sample", type=int, default=400, help="letters to write at the end (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("char_gpt.png"), help="picture; beside it a .csv (%(default)s)")
    options = local.parse(parser)
    return work(options) if options.worker else local.launch(options, configuration(options))


if __name__ == "__main__":
    sys.exit(main())
