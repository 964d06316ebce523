"""Reports for the tests of figures."""

from clbench.report import build
from clbench.report.figures import draw, style
from helpers.records import make_record

NASTY = "a$b_c$ <i>&-- \\frac{x} \u6f22"


def study(ranks=(1, 2, 4), strategies=("ewc", "er", "naive", "joint"), label=None):
    records = []
    for seed in (0, 1, 2):
        made = [make_record("lora", seed, [[0.5] * 3] * 3 + [[0.6 + 0.02 * r + 0.01 * seed] * 3],
                            label=label or f"lora:rank={r}", options={"rank": r}, trainable=[1000 * r] * 3)
                for r in ranks]
        made += [make_record(name, seed, trainable=[50_000] * 3) for name in strategies]
        records += [r.model_copy(update={"costs": r.costs.model_copy(update={"parameters": [
            {"base": 50_000, "more": r.costs.trainable[0] * k * (r.trial.method.name == "lora")} for k in range(3)]})})
            for r in made]
    return build(records)


def figure(report, kind):
    data, = [f for f in report.every_figure if f.kind == kind]
    looks = style.assign_styles(report.strategies)
    with style.styled():
        drawn = draw.KINDS[kind](data, looks)
        drawn.canvas.draw()
    return drawn, looks
