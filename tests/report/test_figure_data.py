import random

import pytest
from helpers.records import make_matrix, make_record

from clbench.report import build
from clbench.report.figures.data import front, panels, slugs
from clbench.report.formats.markdown import render


def study(*methods, seeds=(0, 1), tasks=3, **kwargs):
    """Records of (strategy, parameters, accuracy) with the accuracy of every task constant."""
    return [make_record(name, s, [[0.5] * tasks] * tasks + [[accuracy] * tasks], trainable=[cost] * tasks,
                        label=f"{name}:a={k}", options={"a": k}, **kwargs)
            for s in seeds for k, (name, cost, accuracy) in enumerate(methods)]


def growing(record, kept):
    costs = record.costs.model_copy(update={"parameters": [{"a": n - 1, "b": 1} for n in kept]})
    return record.model_copy(update={"costs": costs})


def figures(records):
    (section,) = build(records).sections
    return {figure.kind: figure for figure in section.figures}


def test_the_front_is_what_nothing_dominates():
    draw = random.Random(0)
    for _ in range(200):
        points = [(draw.randint(1, 6), draw.randint(1, 6)) for _ in range(draw.randint(0, 9))]
        kept = [i for i, (cost, gain) in enumerate(points)
                if not any(c <= cost and g >= gain and (c, g) != (cost, gain) for c, g in points)]
        found = front(points)
        assert sorted(found) == kept
        assert [points[i][0] for i in found] == sorted(points[i][0] for i in found)


def test_the_pareto_figure_holds_the_tables_numbers():
    found = figures(study(("lora", 10, 0.6), ("ewc", 90, 0.8), ("naive", 90, 0.9)))["pareto"]
    assert [(p.label, p.strategy, p.trainable, p.half_width, p.reference) for p in found.points] == [
        ("EWC", "ewc", 90, 0.0, False), ("lora:a=0", "lora", 10, 0.0, False), ("Fine-tuning", "naive", 90, 0.0, True)]
    assert [p.accuracy for p in found.points] == pytest.approx([0.8, 0.6, 0.9])
    assert found.alt == ("Accuracy against trainable parameters per task. Pareto front: lora:a=0 (10; 60.00 ± 0.00 %); "
                         "EWC (90; 80.00 ± 0.00 %). Others: Fine-tuning (90; 90.00 ± 0.00 %).")


def test_a_sweep_at_two_learning_rates_is_two_lines_but_rates_found_for_each_are_one():
    def points(*methods):
        found = figures([make_record("lora", s, label=f"lora:{rank}:{lr}", options={"rank": rank},
                                     trainable=[10 * rank] * 3, own_recipe={"lr": lr}) for s in (0, 1)
                         for rank, lr in methods])["pareto"]
        return {p.label: p.sweep for p in found.points}

    two = points((1, 0.1), (1, 0.2), (2, 0.1), (2, 0.2))
    assert two["LoRA r=1 (0.1)"] == two["LoRA r=2 (0.1)"] != two["LoRA r=1 (0.2)"] == two["LoRA r=2 (0.2)"]
    assert len(two) == 4
    assert len(set(points((1, 0.1), (2, 0.2)).values())) == 1


def test_methods_without_all_their_seeds_are_shown_but_not_on_the_front():
    records = [*study(("lora", 10, 0.6), ("ewc", 90, 0.8)), make_record("er", 0, [[0.9] * 3] * 4, trainable=[5] * 3),
               make_record("pnn", 0, status="diverged")]
    found = figures(records)["pareto"]
    assert [(p.label, p.ranked) for p in found.points] == [("er", False), ("EWC", True), ("lora:a=0", True)]
    assert "Others: er (5; 90.00 ± n/a %)" in found.alt


def test_there_is_no_pareto_figure_where_it_says_nothing():
    assert "pareto" not in figures(study(("lora", 10, 0.6)))
    assert "pareto" not in figures(study(("lora", 10, 0.6), ("ewc", 10, 0.8)))
    assert "pareto" not in figures(study(("lora", 0, 0.6), ("ewc", 10, 0.8)))


def test_a_method_that_trains_nothing_is_named_below():
    found = figures(study(("lora", 10, 0.6), ("ewc", 90, 0.8), ("fixed", 0, 0.3)))["pareto"]
    assert [p.strategy for p in found.points] == ["ewc", "lora"]
    assert found.caption.endswith("Not on the axis of trainable parameters, because they have none: fixed:a=2.")


def test_accuracy_is_shown_against_compute_too_where_records_have_it():
    records = [r for name, cost, flops, accuracy in [("lora", 10, 3e12, 0.6), ("ewc", 90, 9e12, 0.5),
                                                     ("slda", 0, 1e12, 0.4), ("naive", 90, 3e12, 0.9)]
               for r in study((name, cost, accuracy), train_flops=[flops] * 3)]
    records.append(make_record("er", 0, [[0.7] * 3] * 4, trainable=[90] * 3))
    found = figures(records)["pareto"]
    assert found.title == "Accuracy against trainable parameters per task and training compute"
    assert {p.strategy: p.compute for p in found.points} == {
        "lora": 9e12, "ewc": 27e12, "slda": 3e12, "naive": 9e12, "er": None}
    params, compute = panels(found.points)
    assert [p.strategy for p in params.points] == ["er", "lora", "ewc", "naive"]
    assert [params.points[i].strategy for i in params.best] == ["lora"]
    assert [compute.points[i].strategy for i in compute.best] == ["slda", "lora"]
    assert ("Accuracy against training compute. Pareto front: SLDA (3.00 TFLOP; 40.00 ± 0.00 %); lora:a=0 (9.00 TFLOP; "
            "60.00 ± 0.00 %). Others: ") in found.alt
    assert found.caption.endswith("Not on the axis of trainable parameters, because they have none: SLDA. "
                                  "Not on the axis of training compute, because it was not recorded: er.")
    alike = figures([r for r in records if r.label.startswith(("ewc", "naive", "slda"))])["pareto"]
    assert "Not on the axis" not in alike.caption, "no axis of parameters, in which the others are alike"


def test_growth_is_shown_where_something_grows():
    records = [growing(make_record("lora", s), [100, 110, 120 + 10 * s]) for s in (0, 1)]
    found = figures([*records, growing(make_record("ewc", 0), [100] * 3)])["growth"]
    assert [p.sizes for p in found.points] == [(100, 110, 125), (100, 100, 100)]
    assert found.alt == "Total parameters after the first and the last of 3 tasks: lora 100 to 125; EWC 100 to 100."
    assert "growth" not in figures([growing(make_record("ewc", 0), [100] * 3)])
    assert "growth" not in figures([growing(make_record("lora", 0, tasks=1), [100])])


def test_each_setting_has_files_of_its_own():
    records = [r for scenario in ("task", "class")
               for r in study(("lora", 10, 0.6), ("ewc", 90, 0.8), scenario=scenario)]
    names = [p.name for section in build(records).sections for p in section.figures if p.kind == "pareto"]
    assert names == ["split-mnist-5k-task-mlp-pareto", "split-mnist-5k-class-mlp-pareto"]
    assert slugs(["a b", "a-b", "../x:y, Task-IL", "é", "c"]) == [
        "a-b-1", "a-b-2", "x-y-task", "setting-4", "c"]
    assert len(slugs(["x" * 500])[0]) == 80
    assert slugs(["a b", "a-b", "a b 1"]) == ["a-b-1-1", "a-b-2", "a-b-1-3"]


@pytest.mark.parametrize("label", ["a](http://q)", "a\n\n# b", "<b>"])
def test_markdown_embeds_the_figures_with_their_words_escaped(label):
    records = study(("lora", 10, 0.6), ("ewc", 90, 0.8))
    text = render(build([r.model_copy(update={"label": label}) if r.trial.method.name == "lora" else r
                         for r in records]))
    shown = [line for line in text.splitlines() if line.startswith("![")]
    for line, kind in zip(shown, ("pareto", "curves"), strict=True):
        assert line.endswith(f"](figures/split-mnist-5k-task-mlp-{kind}.svg)")
        assert line.count("](") - line.count(r"\](") == 1
        assert "<b>" not in line and "\n# b" not in text
        assert text.index(line) < text.index("<summary>More metrics")


def test_the_curve_of_accuracy_is_shown_where_there_is_one():
    R = [[0.5, 0.5, 0.5], [0.9, 0.4, 0.5], [0.8, 0.7, 0.5], [0.6, 0.7, 0.8]]
    records = [make_record("lora", 0, R), make_record("lora", 1, make_matrix(3)), make_record("er", 0, R),
               make_record("pnn", 0, status="failed")]
    found = figures(records)
    assert [p.kind for p in found.values() if p.brief] == ["curves"]
    assert [p.kind for p in found.values() if not p.brief] == ["forgetting", "heatmaps"]
    assert [r.label for r in found["curves"].results] == ["lora", "er"]
    assert found["curves"].alt.endswith("last task: lora 90.00 to 75.00 %; er 90.00 to 70.00 %.")
    assert found["forgetting"].alt.endswith("its mean over tasks: lora 15.00; er 15.00.")
    assert not figures([make_record("lora", tasks=1)])
