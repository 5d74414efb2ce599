"""How much memory does a training step take, with which switches, and on which card does a batch of 32 fit?

python tools/memory.py     computes pevl/results/memory.csv, in two minutes on a CPU

Nothing is measured on a GPU: tensors without numbers go through the real program and their bytes are counted. A kernel may
need some workspace more, and the allocator keeps some memory for itself.
"""

from pevl.data.files import write_atomic
from pevl.model.pevl import PeVL, count_parameters, get_config
from pevl.train.cost import line, weightless
from pevl.train.learner import csv_text
from settings import ROOT

GIB = 2**30


def parameters(config):  # -> trainable, frozen
    "Numbers of parameters"
    with weightless():
        found = count_parameters(PeVL(config)).values()
    return tuple(map(sum, zip(*found, strict=True)))


def main():
    rows = []
    for name in ("pevl_nano", "pevl_vit_b16", "pevl_vit_l14"):
        config = get_config(name)
        train, frozen = parameters(config)
        for half in (False, True):
            for recompute in (False, True):
                clip, rest = line(config, half, recompute)
                row = dict(
                    model=name, half=int(half), recompute=int(recompute), trainable=train, frozen=frozen
                )
                rows.append(
                    row | dict(gib_per_clip=round(clip / GIB, 4), gib_besides=round(max(0, rest) / GIB, 4))
                )
                print(rows[-1], flush=True)
    write_atomic(ROOT / "pevl" / "results" / "memory.csv", csv_text(rows))


if __name__ == "__main__":
    main()
