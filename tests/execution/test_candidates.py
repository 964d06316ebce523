"""Standard errors, ties and the page of a search's candidates."""

import pytest

from clbench.execution.candidates import candidates_page, choose, mean_text, ranking, score, standard_error, tie_note
from clbench.experiment.search import Choices, Outcome, Search, Tried


def tried(acc, failure="", **options):
    named = {f"recipe.{name}" if name in ("lr", "head_lr") else name: value for name, value in options.items()}
    return Tried(method="m", scenario="class", options=named, acc=acc, failure=failure)


def test_the_standard_error_is_the_sample_deviation_by_the_root_of_the_number():
    assert standard_error([0.5, 0.6]) == pytest.approx(0.05)  # deviation 0.0707107, root of 2
    assert standard_error([0.5, 0.6, 0.7]) == pytest.approx(0.1 / 3 ** 0.5)
    assert standard_error([0.5]) is None and standard_error([]) is None
    assert mean_text(tried((0.562, 0.578), lr=1)) == "57.00 ± 0.80" and mean_text(tried((0.57,), lr=1)) == "57.00"


@pytest.mark.parametrize(("low", "high", "chosen"), [
    # Differences 0.01 and 0.03: mean 0.02, deviation 0.01414, standard error 0.01: no tie.
    ((0.50, 0.58), (0.51, 0.61), "high"),
    # Differences -0.01 and 0.03: mean 0.01, deviation 0.02828, standard error 0.02: a tie.
    ((0.52, 0.58), (0.51, 0.61), "low"),
    # Each mean has a standard error of 0.1, but every seed is 0.01 better: the pairs decide, and it is no tie.
    ((0.40, 0.60), (0.41, 0.61), "high"),
    # Differences 0 and 0.02: mean and standard error are both 0.01, which is within one standard error.
    ((0.51, 0.59), (0.51, 0.61), "low"),
    # Three seeds: differences 0.00, 0.01, 0.05: mean 0.02, deviation 0.02646, standard error 0.01528: no tie.
    ((0.50, 0.50, 0.50), (0.50, 0.51, 0.55), "high"),
    ((0.50,), (0.5001,), "high"),  # one seed: no ties
    ((0.51, 0.61), (0.51, 0.61), "low"),  # equal
])
def test_the_lower_rate_wins_a_tie(low, high, chosen):
    candidates = {"high": tried(high, lr=3e-5), "low": tried(low, lr=1e-5)}
    assert choose([*candidates.values()]) is candidates[chosen]
    assert bool(tie_note([*candidates.values()])) == (chosen == "low")


def test_the_rate_of_the_backbone_comes_before_that_of_the_head_and_the_mean_last():
    best, near, far = (0.50, 0.60), (0.52, 0.56), (0.30, 0.30)  # near: differences -0.02, 0.04; mean 0.01 <= 0.03
    a, b, c = tried(best, lr=3e-5, head_lr=1e-3), tried(near, lr=1e-5, head_lr=3e-3), tried(far, lr=1e-6, head_lr=1e-3)
    assert choose([a, b, c]) is b
    d = tried(near, lr=1e-5, head_lr=1e-3)
    assert choose([a, b, c, d]) is d
    e, f = tried(near, lr=1e-5, strength=1.0), tried((0.53, 0.56), lr=1e-5, strength=9.0)  # equal rates
    assert choose([tried(best, lr=3e-5, strength=1.0), e, f]) is f
    none, lower = tried(best, lr=1e-4, head_lr="none"), tried(near, lr=1e-4, head_lr=1e-5)  # none means 1e-4
    assert choose([none, lower]) is lower and choose([none, tried(near, lr=1e-4, head_lr=1e-3)]) is none
    unknown, known = tried(best, head_lr="none"), tried(near, head_lr=1e-3)  # `none` may be any rate
    assert choose([unknown, known]) is known


def test_without_a_rate_the_best_mean_is_chosen():
    best, near = tried((0.50, 0.60), strength=10.0), tried((0.52, 0.56), strength=1.0)
    assert choose([near, best]) is best and tie_note([near, best]) == ""


def test_a_candidate_without_a_result_is_never_chosen_and_one_tried_twice_counts_once():
    bad, good = tried((), "seed 1000 diverged", lr=1e-6), tried((0.5, 0.6), lr=1e-3)
    again = tried((0.5, 0.6), lr=1e-3)
    assert ranking([bad, good, again]) == [good] and choose([bad, good, again]) is good


def search(candidates, outcomes=()):
    return Search(command="clbench tune my_file.toml", versions={}, validation=0.2, seeds=(1000, 1001), trials=4,
                  sampler="every value of a grid", space={"m": {"recipe.lr": Choices(values=(1,))}},
                  budget={"iterations": 5}, tried=tuple(candidates), outcomes=tuple(outcomes), widen=2)


def test_the_page_has_every_candidate_and_marks_the_chosen_one_and_the_best_mean():
    candidates = [tried((0.52, 0.58), lr=1e-5), tried((0.51, 0.61), lr=3e-5), tried((), "seed 1001 diverged", lr=1e-4)]
    note = tie_note(candidates)
    assert note == ("recipe.lr=1e-5 (55.00 ± 3.00) was chosen: it is within one standard error of recipe.lr=3e-5 "
                    "(56.00 ± 5.00; the paired difference is 1.00 ± 2.00) and has the lower rate")
    alone = Tried(method="x_y", scenario="task", options={"a": 1}, acc=(0.9,))
    outcome = Outcome(method="m", scenario="class", notes=("recipe.lr was widened to 1e-4", note))
    page = candidates_page([search([*candidates, alone], [outcome])])
    lines = page.splitlines()
    start = lines.index("## m, scenario class")
    assert lines[start + 2:] == [
        "| options | mean (%) | standard error | seeds | remark |",
        "| :-- | --: | --: | --: | :-- |",
        "| recipe.lr=1e-5 | 55.00 | 3.00 | 2 | chosen |",
        "| recipe.lr=3e-5 | 56.00 | 5.00 | 2 | best mean |",
        "| recipe.lr=1e-4 |  |  |  | seed 1001 diverged |",
        "",
        "- recipe.lr was widened to 1e-4.",
        f"- {note}.",
        "",
        "## x\\_y, scenario task",
        "",
        "| options | mean (%) | standard error | seeds | remark |",
        "| :-- | --: | --: | --: | :-- |",
        "| a=1 | 90.00 |  | 1 | chosen |"]
    head = "\n".join(lines[:start])
    assert "\n    clbench tune my_file.toml\n" in head and "- Seeds: 1000, 1001\n" in head
    assert "validation: 0.2\n- Budget: 5 iterations\n- Sampler: every value of a grid" in head


def of_nll(nll, failure="", **options):
    return tried(nll, failure, **options).model_copy(update={"metric": "nll"})


def test_of_language_models_the_candidate_with_the_lowest_nll_is_chosen():
    candidates = [of_nll((3.0, 3.2), lr=1), of_nll((1.0, 1.1), lr=2), of_nll((), "seed 5 diverged", lr=3)]
    assert ranking(candidates) == candidates[1::-1] and choose(candidates) is candidates[1]
    assert sorted(candidates, key=score) == [candidates[2], candidates[0], candidates[1]], "no result is the worst"
    assert mean_text(candidates[1]) == "1.05 ± 0.0500"


def test_a_tie_of_nll_is_within_one_standard_error_above_the_lowest():
    # Differences -0.1 and 0.3: mean 0.1, deviation 0.2828, standard error 0.2: a tie, which the lower rate wins.
    low, high = of_nll((0.9, 1.3), lr=0.1), of_nll((1.0, 1.0), lr=1)
    assert choose([low, high]) is low
    assert tie_note([low, high]) == (
        "recipe.lr=0.1 (1.10 ± 0.200) was chosen: it is within one standard error of recipe.lr=1 (1.00 ± 0.00; the "
        "paired difference is 0.100 ± 0.200) and has the lower rate")
    assert choose([of_nll((1.3, 1.4), lr=0.1), high]) is high


def test_the_page_of_a_search_by_nll_names_the_metric_and_its_unit():
    made = Search(command="clbench tune x.toml", versions={}, validation=0.1, seeds=(5, 6), trials=2, sampler="grid",
                  space={"m": {"recipe.lr": Choices(values=(1, 2))}},
                  tried=(of_nll((3.0, 3.2), lr=1), of_nll((1.0, 1.1), lr=2)))
    page = candidates_page([made])
    assert "A mean is that of the average NLL on the validation samples" in page and "ACC" not in page
    assert "| options | mean (nats) | standard error | seeds | remark |" in page
    assert "| recipe.lr=2 | 1.05 | 0.0500 | 2 | chosen |" in page
