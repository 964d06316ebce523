"""The first lines of a section: answer, cost, trade-offs, cautions, next command."""

import datetime
import itertools
import re
from functools import partial

import pytest
from helpers import ROOT
from helpers.records import make_matrix, make_record

from clbench.core.registry import installed
from clbench.experiment.search import Searched
from clbench.experiment.trial import Resolved, Weights
from clbench.experiment.until import UntilDecided
from clbench.report import build
from clbench.report.analysis.headline import ANSWER, CAUTION, COST, NEXT, TRADE_OFFS
from clbench.report.formats import markdown
from clbench.results.store import Store

SEARCH = Searched(candidates=4, validation=0.1, seeds=(1000,))
NOISE = (0.001, -0.002, 0.003, 0.0005, -0.001, 0.002)


def study(levels, seeds=3, noise=NOISE, command="clbench run --methods x", **kwargs):
    """Records of methods by their ACC; the noise of a method is shifted, so that differences vary."""
    return [make_record(m, s, [*make_matrix(3)[:-1], [level + noise[(s + k) % len(noise)]] * 3], test_samples=50_000,
                        command=command, **kwargs)
            for k, (m, level) in enumerate(levels.items()) for s in range(seeds)]


def told(records, about):
    """Return the lines about something."""
    section, = build(records).sections
    return [text for kind, text in section.headline if kind == about]


def cost(records, label, trainable=1000, stored=4000, flops=None, samples=0):
    """Return records in which a method has these costs."""
    changed = []
    for r in records:
        if r.trial.method.name == label:
            costs = r.costs.model_copy(update={
                "trainable": [trainable] * 3, "bytes": [{"base": stored}] * 3, "replay_samples": [samples] * 3,
                "train_flops": [flops] * 3 if flops else []})
            r = r.model_copy(update={"costs": costs})
        changed.append(r)
    return changed


def tuned(records, *names):
    return [r.model_copy(update={"searched": SEARCH}) if r.trial.method.name in names else r for r in records]


def test_one_method_has_its_accuracy_and_that_of_the_references():
    assert told(study({"ewc": 0.9, "naive": 0.7, "joint": 0.95}), ANSWER) == [
        "EWC 90.1%.", "References: Joint training 95.1% and Fine-tuning 70.0%."]


def test_of_two_methods_one_is_significantly_better_or_more_seeds_are_needed():
    assert told(study({"ewc": 0.9, "lora": 0.8}), ANSWER) == ["EWC (90.1%) is significantly better than lora (80.0%)."]
    wide = (0.02, -0.03, 0.01, 0.0, 0.03, -0.02)
    text, = told(study({"ewc": 0.8, "lora": 0.79}, noise=wide), ANSWER)
    assert text.startswith("EWC 80.0%, lora 78.3%: no significant difference (about ")
    assert text.endswith(" seeds would be needed).")
    one, = told(study({"ewc": 0.8, "lora": 0.79}, 1), ANSWER)
    assert one == "EWC 80.1%, lora 78.8%: inconclusive."


def test_one_shared_seed_and_equal_differences_do_not_need_more_than_100_seeds():
    records = study({"ewc": 0.8, "lora": 0.7, "er": 0.79}, 2)
    text, = told([r for r in records if r.label != "er" or r.trial.seed == 0], ANSWER)
    assert re.fullmatch(r"EWC \(80.0%\) leads, but it is not significantly better than any of the 2 other methods \(.*"
                        r"would be needed.*\)\. There are too few seeds to compare it with er\.", text)
    same = [r.model_copy(update={"R": [*r.R[:-1], [(0.8 if r.label == "ewc" else 0.79) + r.trial.seed / 100] * 3]})
            for r in study({"ewc": 0.8, "lora": 0.79})]
    assert told(same, ANSWER) == ["EWC 81.0%, lora 80.0%: no significant difference (about 6 seeds would be needed)."]


def test_of_two_equal_methods_no_one_leads_alone():
    same = study({"ewc": 0.8, "lora": 0.8}, noise=(0.001, 0.002) * 3)
    lora = [r.model_copy(update={"R": next(o.R for o in same if o.label == "ewc" and o.trial.seed == r.trial.seed)})
            if r.label == "lora" else r for r in same]
    assert told(lora, ANSWER) == ["EWC (80.1%) leads. It equals lora on every seed."]


def test_of_many_methods_those_that_are_not_significantly_worse_are_named():
    wide = (0.03, -0.04, 0.02, 0.0, 0.03, -0.02)
    near = [*study({"ewc": 0.81, "er": 0.795, "mas": 0.79, "si": 0.788, "lwf": 0.785}, noise=wide)]
    text, = told(near, ANSWER)
    assert text.startswith("EWC (81.3%) leads, but it is not significantly better than any of the 4 other methods")
    far = [*near, *study({"ncm": 0.2, "slda": 0.21})]
    text, = told(far, ANSWER)
    assert text.startswith("EWC (81.3%) leads; it is significantly better than 2 of 6 other methods, including SLDA ○ "
                           "and NCM ○. ")
    assert ". MAS, LwF, SI and 1 more are not significantly worse" in text  # the nearest first
    text, = told(tuned(far, "ewc", "er", "si"), ANSWER)
    assert ". MAS (not tuned), LwF (not tuned), SI and 1 more are not significantly worse" in text
    decided, = told(study({"ewc": 0.9, "er": 0.8, "mas": 0.7}), ANSWER)
    assert decided == "EWC (90.1%) is significantly better than both other methods."
    many, = told(study({"ewc": 0.9, "er": 0.8, "mas": 0.7, "si": 0.6}), ANSWER)
    assert many == "EWC (90.1%) is significantly better than all other methods."


def test_methods_without_all_seeds_are_not_compared_with_a_single_method_that_has_them():
    records = [r for r in study({"lora": 0.61, "ewc": 0.895}) if (r.label, r.trial.seed) != ("ewc", 1)]
    answer, = told(records, ANSWER)
    assert answer == "Only lora (61.1%) has a result for every seed; EWC (89.4%) does not."
    answer, = told([r for r in records if (r.label, r.trial.seed) != ("lora", 0)], ANSWER)
    assert answer.startswith("No method has a result for every seed: EWC (")


def test_methods_without_all_seeds_that_are_significantly_better_are_named():
    levels = {"pnn": 0.68, "lora": 0.6, "si": 0.8, "ewc": 0.9}
    records = [r for r in study(levels, 4) if (r.label, r.trial.seed) not in {("si", 1), ("ewc", 2)}]
    assert told(records, ANSWER) == [
        "PNN (68.1%) is significantly better than 1 of 3 other methods. "
        "PNN is significantly worse than EWC and SI on shared seeds."]
    wide = (0.02, -0.03, 0.01, 0.0, 0.03, -0.02)
    close = [r for r in study({"pnn": 0.68, "lora": 0.65}, 4, wide)] + [r for r in records if r.label in ("si", "ewc")]
    answer, = told(close, ANSWER)
    assert "leads the methods with all seeds, but it is not significantly better than any of the 3 other" in answer
    assert "PNN is significantly worse than EWC and SI on shared seeds." in answer
    needed = int(re.search(r"about (\d+) seeds", answer)[1])
    assert needed > 4  # of the comparison with lora, which PNN leads


def test_methods_with_too_few_seeds_for_a_test_are_not_called_not_significantly_worse():
    records = [r for r in study({"ewc": 0.9, "lora": 0.6, "er": 0.89}) if r.label != "er" or r.trial.seed == 0]
    best = build(records).sections[0].facts.best
    assert (best.beaten, best.open, best.inconclusive) == (("lora",), (), ("er",))
    assert told(records, ANSWER) == ["EWC (90.1%) is significantly better than 1 of 2 other methods. "
                                     "There are too few seeds to compare it with er."]
    single = build([r for r in records if r.trial.seed == 0]).sections[0].facts.best
    assert single.open == ("er", "lora") and not single.inconclusive and single.test is None


def test_a_named_baseline_is_compared_without_references_too():
    section, = build(study({"ewc": 0.9, "er": 0.8, "lora": 0.7}), baseline="er").sections
    assert section.headline[1][1] == "Of 2 methods, 1 is significantly better than er and 1 is significantly worse."


def test_references_say_how_many_methods_are_better_or_worse_than_naive():
    line = told(study({"ewc": 0.9, "er": 0.8, "mas": 0.6, "naive": 0.7}), ANSWER)[1]
    assert line == ("References: Fine-tuning 70.0%. Of 3 methods, 2 are significantly better than Fine-tuning and 1 is "
                    "significantly worse.")
    for levels, words in (({"ewc": 0.9, "er": 0.8}, "Both"), ({"ewc": 0.9, "er": 0.8, "mas": 0.6}, "All 3")):
        line = told(study({**levels, "naive": 0.5}), ANSWER)[1]
        assert line.endswith(f" {words} methods are significantly better than Fine-tuning.")


def test_a_leader_that_stores_samples_is_compared_with_the_best_that_stores_none():
    records = study({"er": 0.9, "ewc": 0.85, "lora": 0.8, "naive": 0.5, "joint": 0.99})
    records = cost(records, "er", stored=10_000, samples=500, flops=10**9)
    records = cost(records, "lora", trainable=10, stored=100, flops=10**8)
    records = cost(records, "ewc", trainable=1000, stored=3600, flops=4 * 10**9)
    assert told(records, COST) == ["Compared with er, EWC (85.0%) stores no samples and stores 64% less, but needs 4.0 "
                                   "times as much training compute."]


def test_a_leader_that_stores_no_samples_is_compared_with_the_best_that_is_cheaper():
    records = study({"ewc": 0.9, "mas": 0.87, "lora": 0.85, "er": 0.84})
    records = cost(records, "lora", trainable=18, stored=3600)
    records = cost(records, "er", trainable=1, stored=1, samples=3)
    assert told(records, COST) == [f"Compared with EWC, lora (85.1%) trains {1000 / 18:.0f} times fewer parameters per "
                                   "task and stores 10% less."]


def test_a_cost_that_neither_method_has_is_no_difference():
    records = study({"ewc": 0.9, "lora": 0.85})
    records = cost(cost(records, "ewc", trainable=0), "lora", trainable=0, stored=2000)
    assert told(records, COST) == ["Compared with EWC, lora (85.0%) stores 50% less."]


@pytest.mark.parametrize("levels", [{"ewc": 0.9, "lora": 0.8}, {"ewc": 0.9}, {"ewc": 0.9, "naive": 0.8}])
def test_there_is_no_line_on_costs_if_nothing_is_cheaper(levels):
    records = study(levels)
    records = cost(records, "naive", trainable=1, stored=1)  # a reference is no alternative
    records = cost(records, "lora", stored=4100)  # less than a tenth more is called the same
    assert told(records, COST) == []


def test_trade_offs_are_the_pareto_fronts_and_equal_fronts_share_a_line():
    records = study({"ewc": 0.9, "lora": 0.8, "er": 0.7, "naive": 0.95})
    records = cost(records, "lora", trainable=10, stored=100)
    assert told(records, TRADE_OFFS) == [
        "of accuracy against trainable parameters per task and storage: EWC (90.1%), lora (80.0%)."]
    both = cost(records, "er", trainable=1000, stored=10)
    assert told(both, TRADE_OFFS) == ["of accuracy against trainable parameters per task: EWC (90.1%), lora (80.0%).",
                                      "of accuracy against storage: EWC (90.1%), lora (80.0%), er (70.1%)."]
    five = study({f"m{k}": 0.5 + k / 20 for k in range(5)})
    for k in range(5):
        five = cost(five, f"m{k}", trainable=10 ** k)
    front, = (line for line in told(five, TRADE_OFFS) if "trainable" in line)
    assert front.count("%") == 3 and front.endswith(" and 2 more.") and ": m4 (70" in front
    front, = (line for line in told([r for r in five if r.label != "m0"], TRADE_OFFS) if "trainable" in line)
    assert front.count("%") == 4 and "more" not in front
    assert told(study({"naive": 0.5, "joint": 0.9}), TRADE_OFFS) == []


def test_cautions_name_what_limits_the_conclusions():
    def cautions(records):
        return told(records, CAUTION)

    plain = {"ewc": 0.9, "er": 0.8, "naive": 0.7}
    assert cautions(study(plain)) == ["No method was tuned."]
    candidates = [r.model_copy(update={"trial": r.trial.model_copy(update={"validation": 0.2})}) for r in study(plain)]
    assert cautions(candidates) == []  # the results of tuning itself
    assert cautions(tuned(study(plain), "ewc", "er")) == []
    assert cautions(tuned(study(plain), "ewc")) == ["Untuned, unlike the other method: er."]
    assert cautions(tuned(study({**plain, "mas": 0.7}), "ewc", "mas")) == ["Untuned, unlike the other 2 methods: er."]
    assert cautions(tuned(study({"ewc": 0.9, "er": 0.8}), "ewc", "er")) == [
        "The fine-tuning baseline (naive) was not run, so this report cannot say which methods reduce forgetting."]
    seen = [r.model_copy(update={"seen": [0, 1]}) if r.trial.seed == 2 else r for r in study(plain)]
    assert cautions(seen)[0] == ("Seed 2 was added after an interim analysis; the tests do not account for that.")
    lost = [r for r in study(plain) if (r.label, r.trial.seed) != ("er", 1)]
    assert cautions(lost)[0] == "Not every seed gave a result: er."
    assert cautions(study({**plain, "mas": 0.3}))[0] == "Not better than chance: MAS."
    mixed = [r.model_copy(update={"provenance": r.provenance.model_copy(update={"machine": r.label, "git": str(s)})})
             for r, s in zip(study(plain), itertools.cycle("ab"), strict=False)]
    assert cautions(mixed)[-1] == "The records come from 2 commits and 3 machines."

    def timed(cpu, device="cpu"):
        return [r.model_copy(update={"timings": r.timings.model_copy(update={"train": [90.0], "train_cpu": [cpu]}),
                                     "provenance": r.provenance.model_copy(update={"device": device})})
                if r.label == "er" and r.trial.seed == 1 else r for r in study(plain)]

    assert cautions(timed(40.0))[-1] == (
        "Training times include waiting for the processor; compare training CPU instead: er.")
    for usual in (timed(50.0), timed(40.0, device="cuda")):
        assert not any("waiting" in caution for caution in cautions(usual))


def test_a_name_that_the_study_gives_is_explained():
    records = [*study({"ewc": 0.9, "naive": 0.7}), make_record("lora", label="lora-head-rate")]
    section, = build(records).sections
    assert "Names that the study gives: lora-head-rate = lora." in str(section)


def test_the_caution_on_tuning_leaves_out_variants_of_tuned_methods_and_references_do_not_count():
    wide = (0.03, -0.04, 0.02, 0.0, 0.03, -0.02)
    records = tuned(study({"lora": 0.8, "ewc": 0.79, "mas": 0.2}, noise=wide), "lora")
    records += study({"lora": 0.785}, noise=wide[3:] + wide[:3], options={"rank": 8}, label="lora:rank=8")
    assert told(records, CAUTION)[0] == "Not better than chance: MAS."
    assert told(records, CAUTION)[1] == "Untuned, unlike the tuned method: EWC and MAS."
    answer, = told(records, ANSWER)
    assert "LoRA r=8 (not tuned) and EWC (not tuned) are not significantly worse" in answer
    reference = tuned(study({"ewc": 0.8, "er": 0.79, "mas": 0.785, "si": 0.2, "naive": 0.5}, noise=wide), "naive")
    assert "(not tuned)" not in told(reference, ANSWER)[0]


def budget_cautions(method, steps, weights=None):
    """Return the cautions on authors' budgets for a method that took `steps` steps on each task."""
    records = [r.model_copy(update={"trial": r.trial.model_copy(update={"weights": weights}),
                                    "costs": r.costs.model_copy(update={"steps": steps})})
               for r in study({method: 0.9, "naive": 0.7})]
    return [text for text in told(records, CAUTION) if "quarter" in text]


def test_a_caution_names_methods_on_weights_with_less_than_a_quarter_of_their_authors_steps():
    cautions = partial(budget_cautions, "slca", weights=Weights(path="w", sha256="0" * 64))
    # 20 epochs of 5,000 samples in batches of 128 are 20 * 40 = 800 steps.
    assert cautions([199, 199, 199]) == [
        "Trained with less than a quarter of its authors' optimizer steps per task: SLCA."]
    assert cautions([200, 200, 200]) == cautions([0, 0, 0]) == cautions([10, 10, 200]) == []
    assert cautions([1, 1, 1], weights=None) == []


def test_a_budget_of_networks_from_scratch_is_compared_with_runs_from_scratch():
    # 170 epochs of 5,000 samples in batches of 128 are 170 * 40 = 6,800 steps.
    assert len(budget_cautions("wa", [1699] * 3)) == 1
    assert budget_cautions("wa", [1700] * 3) == []
    assert budget_cautions("wa", [1] * 3, weights=Weights(path="w", sha256="0" * 64)) == []


def test_methods_whose_authors_train_from_scratch_have_a_budget():
    infos = [info for info in installed().strategies.values() if info.from_scratch]
    assert {info.name for info in infos} == {
        "wa", "lucir", "fetril", "gem", "rwalk", "podnet", "dynamic-er", "generative-replay"}
    assert all(info.budget for info in infos)


def test_of_more_than_five_cautions_the_rest_is_counted():
    records = study({"ewc": 0.9, "er": 0.8, "mas": 0.3, "si": 0.7})
    records = [r.model_copy(update={"R": [r.R[0], *([0.6] * 3 for _ in r.R[2:]), r.R[-1]]}) if r.label == "si" else r
               for r in records]  # SI has not learned its tasks
    records = [r for r in records if (r.label, r.trial.seed) != ("er", 1)]
    losses = [[2.0, 1.0]] * 3
    records = [r.model_copy(update={
        "last_losses": losses if r.label == "si" else [], "seen": [0] if r.trial.seed == 2 else [],
        "provenance": r.provenance.model_copy(update={"machine": r.label})}) for r in records]
    section, = build(records).sections
    shown = [text for kind, text in section.headline if kind == CAUTION]
    assert len(shown) == 5 and shown[-1] == "The notes below the table have 4 further cautions."
    assert [note.split(" ")[0] for note in section.notes[:4]] == ["No", "Not", "The", "The"]
    assert section.notes[0] == "No method was tuned." and section.notes[3] == "The records come from 4 machines."


def test_joint_training_is_named_once_if_it_is_the_baseline():
    section, = build(study({"ewc": 0.9, "er": 0.8, "naive": 0.5, "joint": 0.95}), baseline="joint").sections
    references = section.headline[1][1]
    assert references.startswith("References: Joint training 95.0% and Fine-tuning 50.1%. ")
    assert " ".join(section.footnote).count("2 comparisons with Joint training") == 1


@pytest.mark.parametrize(("levels", "command", "expected"), [
    ({"ewc": 0.9, "er": 0.8}, "clbench run --methods ewc,er --seeds 3 --out runs/x",
     "add the fine-tuning baseline: clbench run --seeds 3 --out runs/x --methods naive"),
    ({"ewc": 0.9, "er": 0.8}, "clbench run --methods ewc,er --set ewc.strength=1,10 --set=er.capacity=9 --seeds 3",
     "add the fine-tuning baseline: clbench run --seeds 3 --methods naive"),
    ({"ewc": 0.9, "er": 0.8, "naive": 0.5}, "clbench run study.toml --seeds 3",
     "tune the methods: clbench tune study.toml"),
    ({"ewc": 0.9, "er": 0.8, "naive": 0.5}, "clbench run study.toml --epochs 3 --seeds 3",
     "tune the methods: clbench tune study.toml --epochs 3"),
    ({"ewc": 0.9, "er": 0.8, "naive": 0.5}, "clbench run --methods ewc,er,naive", None),
    ({"ewc": 0.8, "er": 0.78, "naive": 0.5}, "clbench run --methods ewc,er,naive --out=runs/x",
     "collect seeds until the question is decided, in a new folder: clbench run --methods ewc,er,naive --until decided "
     "--baseline best --out runs/x-decided"),
    ({"ewc": 0.8, "er": 0.78, "naive": 0.5}, "clbench run --methods ewc,er,naive --shard 2/4 --rerun --out runs/x",
     "collect seeds until the question is decided, in a new folder: clbench run --methods ewc,er,naive --until decided "
     "--baseline best --out runs/x-decided"),
    ({"ewc": 0.8, "er": 0.78, "naive": 0.5}, "clbench run 'my study.toml' --weights a.toml",
     "tune the methods: clbench tune 'my study.toml'"),
    ({"ewc": 0.8, "er": 0.78, "naive": 0.5}, "clbench run --probe --epochs=3 study.toml",
     "tune the methods: clbench tune study.toml --epochs 3"),
    ({"ewc": 0.9, "naive": 0.5}, "clbench verify lora", None),
    ({"ewc": 0.9}, "python study.py", None),
])
def test_the_next_step_is_the_first_that_applies(levels, command, expected):
    wide = (0.02, -0.03, 0.01, 0.0, 0.03, -0.02) if levels.get("er") == 0.78 else NOISE
    assert told(study(levels, noise=wide, command=command), NEXT) == ([expected] if expected else [])


@pytest.mark.parametrize(("seeds", "value"), [((0, 1, 2), "3"), ((1, 2), "1,2")])
def test_missing_trials_are_run_first(seeds, value):
    command = "clbench run --methods ewc,er --seeds 1 --out runs/x"
    records = [r for r in study({"ewc": 0.9, "er": 0.8}, command=command) if r.trial.seed in seeds]
    records.remove(next(r for r in records if r.label == "er" and r.trial.seed == 2))
    assert told(records, NEXT) == [
        f"run the missing trials: clbench run --methods ewc,er --out runs/x --seeds {value}"]


def test_a_trial_that_diverged_is_not_missing():
    command = "clbench run --methods ewc,er,naive"
    diverged = make_record("er", 2, status="diverged", test_samples=50_000)
    records = [diverged if (r.label, r.trial.seed) == ("er", 2) else r
               for r in study({"ewc": 0.9, "er": 0.8, "naive": 0.5}, command=command)]
    assert not any("missing" in line for line in told(records, NEXT))


def test_only_what_is_untuned_is_to_be_tuned():
    records = tuned(study({"ewc": 0.9, "er": 0.8, "naive": 0.5}, command="clbench run study.toml"), "ewc")
    assert told(records, NEXT) == ["tune what is untuned: clbench tune study.toml --methods er"]


def test_fresh_seeds_are_analyzed_alone_if_the_rule_of_adding_seeds_does_not_apply():
    wide = (0.02, -0.03, 0.01, 0.0, 0.03, -0.02)
    records = study({"ewc": 0.8, "er": 0.78, "naive": 0.5}, 2, wide, "clbench run --methods ewc,er,naive --seeds 2")
    assert told(records, NEXT) == [
        "confirm with fresh seeds, analyzed alone: clbench run --methods ewc,er,naive --seeds 2,3 --out "
        "runs/split-mnist-5k-confirmation"]


def test_seeds_without_samples_are_not_proposed():
    wide = (0.02, -0.03, 0.01, 0.0, 0.03, -0.02)

    def advice(per_class):  # of 500 training images per class
        benchmark = Resolved(name="split-cifar100", options={"train_per_class": per_class, "train_draw": "seed"})
        records = study({"ewc": 0.8, "er": 0.78, "naive": 0.5}, 3, wide, "clbench run --methods ewc,er,naive --seeds 3")
        return told([r.model_copy(update={"trial": r.trial.model_copy(update={"benchmark": benchmark})})
                     for r in records], NEXT)

    assert advice(10)[0].startswith("collect seeds until the question is decided")
    assert advice(50)[0].startswith("confirm with fresh seeds") and "--seeds 3,4,5" in advice(50)[0]
    assert advice(100) == []
    alone = study({"ewc": 0.8, "er": 0.78, "naive": 0.5}, 1, wide, "clbench run --methods ewc,er,naive --seeds 1")
    few = Resolved(name="split-cifar100", options={"train_per_class": 200, "train_draw": "seed"})
    alone = [r.model_copy(update={"trial": r.trial.model_copy(update={"benchmark": few})}) for r in alone]
    assert told(alone, NEXT) == []


def test_more_seeds_are_run_with_the_methods_of_all_commands():
    wide = (0.02, -0.03, 0.01, 0.0, 0.03, -0.02)

    def advice(first, second):
        records = tuned(study({"ewc": 0.8, "er": 0.78, "naive": 0.5}, noise=wide, command=first), "ewc", "er")
        return told([r if r.label == "naive" else r.model_copy(update={"provenance": r.provenance.model_copy(update={
            "command": second, "started": r.provenance.started + datetime.timedelta(1)})}) for r in records], NEXT)

    rule = "--until decided --baseline best --out runs/x-decided"
    start = "collect seeds until the question is decided, in a new folder: clbench run"
    assert advice("clbench run --methods naive --out runs/x", "clbench run --out runs/x --methods=ewc,er") == [
        f"{start} --methods ewc,er,naive {rule}"]
    same = "clbench run --methods er,naive,ewc --out runs/x"
    assert advice(same, same) == [f"{start} --methods er,naive,ewc {rule}"]
    whole, some = "clbench run study.toml --out runs/x", "clbench run study.toml --methods {} --out runs/x"
    for first, second in ((whole, some.format("ewc,er")), (some.format("naive"), whole)):
        assert advice(first, second) == [f"{start} study.toml --methods ewc,er,naive {rule}"]
    changed = f"{whole} --set er.capacity=9"
    assert advice(some.format("naive"), changed) == [
        f"{start} study.toml --set er.capacity=9 {rule}"]


def test_more_seeds_are_run_with_the_options_and_hyperparameters_of_the_methods():
    wide = (0.02, -0.03, 0.01, 0.0, 0.03, -0.02)
    first, second = "clbench run --methods ewc,er --set er.capacity=9", "clbench run --methods naive"
    records = [r for label, own in (("er:capacity=9", {}), ("ewc:recipe.lr=0.01", {"lr": 0.01}), ("naive", {}))
               for r in study({"ewc": 0.8, "er": 0.78, "naive": 0.5}, noise=wide, label=label, own_recipe=own,
                              command=second if label == "naive" else first)
               if r.trial.method.name == label.partition(":")[0]]
    line, = told(records, NEXT)
    assert "--methods ewc:recipe.lr=0.01,er:capacity=9,naive --until decided" in line and "--set" not in line


def test_a_baseline_that_diverged_is_not_to_be_added():
    records = [r if r.label != "naive" else make_record("naive", r.trial.seed, status="diverged", test_samples=50_000)
               for r in study({"ewc": 0.9, "er": 0.8, "naive": 0.5}, command="clbench run --methods ewc,er,naive")]
    assert told(records, NEXT) == []
    assert ("The fine-tuning baseline (naive) has no result, so this report cannot say which methods reduce "
            "forgetting.") in told(records, CAUTION)


def test_a_rule_that_adds_seeds_gets_no_further_method():
    records = study({"ewc": 0.9, "er": 0.8}, command="clbench run --methods ewc,er --until decided")
    rule = UntilDecided(first=3, most=8)
    assert told([r.model_copy(update={"until": rule}) for r in records], NEXT) == []


def test_with_one_seed_the_comparisons_with_the_baseline_are_inconclusive():
    records = study({"ewc": 0.9, "er": 0.8, "mas": 0.7, "naive": 0.5}, 1)
    assert told(records, ANSWER)[1] == (
        "References: Fine-tuning 50.0%. The comparisons with Fine-tuning are inconclusive.")


def test_a_single_seed_was_not_tested_and_gets_more_in_the_same_folder():
    records = study({"ewc": 0.8, "er": 0.78, "naive": 0.5}, 1, command="clbench run --methods ewc,er,naive --seeds 1")
    assert told(records, NEXT) == ["run more seeds: clbench run --methods ewc,er,naive --seeds 5"]


def test_more_seeds_are_not_advised_if_more_than_the_rule_allows_would_be_needed():
    wide = (0.02, -0.03, 0.01, 0.0, 0.03, -0.02)
    records = study({"ewc": 0.8, "er": 0.79, "naive": 0.5}, noise=wide, command="clbench run --methods ewc,er,naive")
    assert build(records).sections[0].headline[0][1].endswith("(about 31 seeds would be needed).")
    assert told(records, NEXT) == []


def test_a_method_that_stores_all_training_samples_is_close_to_joint_training():
    def stored(count):
        return [r.model_copy(update={"costs": r.costs.model_copy(update={"replay_samples": [count] * 3})})
                for r in study({"er": 0.9, "naive": 0.5})]

    total = sum(study({"er": 0.9})[0].stream.train_samples)
    assert any("er stores all training samples" in text for text in told(stored(total), CAUTION))
    for other in (total - 1, total + 1):  # a buffer with more samples, as of der, has some of them several times
        assert not any("stores all" in text for text in told(stored(other), CAUTION))


def test_the_command_is_code_in_markdown():
    text = markdown.render(build(study({"ewc": 0.9, "er": 0.8}, command="clbench run --methods ewc,er")))
    assert "- **Next:** add the fine-tuning baseline: `clbench run --methods naive`" in text


FOLDERS = sorted(path.parent for path in (ROOT / "reports").rglob("records"))


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(ROOT / "reports")))
def test_no_committed_report_begins_with_more_than_14_lines(folder):
    records, _ = Store(folder).read()
    for section in build(records).sections:
        counts = {kind: sum(about == kind for about, _ in section.headline)
                  for kind in (ANSWER, COST, TRADE_OFFS, CAUTION, NEXT)}
        assert sum(counts.values()) == len(section.headline) <= 13  # and the heading
        assert 1 <= counts[ANSWER] <= 2 and counts[TRADE_OFFS] <= 4 and counts[CAUTION] <= 5
        assert max(counts[COST], counts[NEXT]) <= 1
        names = [m.label for m in section.results]
        assert len(set(names)) == len(names)
        assert all("  " not in text and text for _, text in section.headline)


def test_names_that_end_with_parentheses_get_no_second_pair():
    records = [r.model_copy(update={"label": "er:capacity=500"} if r.label == "er" else {})
               for r in study({"ewc": 0.8, "er": 0.9}, options={"capacity": 500})]
    assert told(records, ANSWER) == ["ER (500) 90.1% is significantly better than EWC (80.1%)."]
