"""The claims about LoRA: a permanent slug, a plain sentence, the rule of its verdict, and its test."""

from __future__ import annotations

from dataclasses import dataclass

from comparisons import (
    Test,
    compare_accuracy,
    compare_at_equal_storage,
    compare_cost,
    compare_parameters,
    compare_pnn_cost,
    compare_ranks,
    compare_trained_share,
    compare_with_given_ids,
    compare_with_just_learned,
    training_flops,
    training_seconds,
)
from experiments import (
    compare_alphas,
    compare_layers,
    compare_test_sets,
    compare_with_no_pretraining,
    measure_growth,
    read_removals,
    read_spectra,
)
from verdicts import MARGIN, is_above, is_below


@dataclass(frozen=True)
class Claim:
    """A sentence about LoRA and its test."""

    slug: str  # the permanent name of the page and its anchor
    sentence: str
    rule: str
    test: Test
    designed: tuple[str, ...] = ()  # studies in this folder that were designed for the claim, in order of preference
    remark: str = ""


MAIN = ("answer", "vision_task", "vision_class", "efficientnet_class", "text_task", "text_class")
NOT_WORSE = ("Supported if LoRA is less than 2 points worse in accuracy: the whole interval is above -2. Contradicted "
             "if the whole interval is below -2.")
BEST_SHOWN = "The best rows are chosen by the accuracies shown, which favors both sides."


def not_worse(slug: str, sentence: str, *rivals: str, designed: tuple[str, ...] = MAIN, remark: str = "") -> Claim:
    """Return the claim that LoRA is not much worse than some methods."""
    return Claim(slug, sentence, NOT_WORSE, compare_accuracy(is_above(-MARGIN), *rivals), designed, remark)


CLAIMS = (
    not_worse("ewc", "LoRA is not much worse than EWC", "ewc",
              remark="In `answer`, EWC has a separate learning rate for the head. In the other studies on pretrained "
                     "backbones it has one rate for backbone and head, which is low for the head."),
    not_worse("er", "LoRA is not much worse than experience replay", "er",
              remark="ER stores samples and LoRA does not. A larger buffer improves ER."),
    not_worse("pnn", "LoRA is not much worse than progressive networks", "pnn",
              remark="The paper's PNN starts later columns from random weights, which is weak on a pretrained "
                     "backbone. With `start=base`, columns start from the backbone, as LoRA's adapters do."),
    not_worse("shared-private", "LoRA is not much worse than shared-private networks", "shared-private"),
    not_worse("shared-adapters", "LoRA is not much worse than adapters that tasks share", "seq-lora", "inflora",
              "ewc-lora", "sd-lora", "o-lora", designed=("vision_family_task", "vision_family_class", "sgd"),
              remark="`sd-lora` is trained with SGD, as in its paper. In the study `sgd`, LoRA is, too."),
    Claim("analytic-classifiers", "LoRA is not much worse than analytic classifiers on the frozen backbone", NOT_WORSE,
          compare_accuracy(is_above(-MARGIN), "ncm", "slda", "ranpac", "ridge", frozen=True),
          (*MAIN, "vision_family_class", "text_ridges"),
          "Analytic classifiers (`ncm`, `slda`, `ranpac`, `ridge`) are computed in closed form and train no layer. "
          "Rows that train adapters in the first task are left out. Untuned `ranpac` chooses its ridge on the last "
          "task's samples, which [goes wrong on texts](../../reports/lora_question/text_ridges/report.md)."),
    not_worse("joint", "LoRA is not much worse than joint training", "joint",
              remark="Joint training sees all tasks at once, which continual learning does not allow, and takes more "
                     "steps unless its label says otherwise."),
    Claim("linear-probe", "LoRA is clearly better than a linear probe and private layers on the frozen backbone",
          "Supported if LoRA is more than 2 points better: the whole interval is above 2. Contradicted if it is below.",
          compare_accuracy(is_above(MARGIN), "frozen", "shared-private", same_backbone=True), MAIN),
    Claim("task-ids", "LoRA loses little without task IDs",
          "Supported if less than 2 points are lost: the whole interval is above -2. Both accuracies are of the same "
          "trials of a Class-IL study: with inferred task IDs, and with the IDs given.", compare_with_given_ids, MAIN,
          "Older Class-IL records do not have the accuracy with given IDs, so they are not on this page."),
    Claim("interference", "A new task never changes LoRA's accuracy on earlier tasks",
          "Supported if no accuracy on an earlier task ever changes, in any seed.", compare_with_just_learned, MAIN),
    Claim("add-and-remove", "Tasks can be added and removed independently",
          "Supported if the logits of all test samples stay the same bit for bit: those of other tasks when a task is "
          "removed and trained again, and those of the task itself.", read_removals, (),
          "`benchmarks/lora_question/add_remove.py` removes the adapters of finished runs and trains them again."),
    Claim("parameters", "LoRA trains at least 10 times fewer parameters per task than full fine-tuning",
          "Supported if full fine-tuning trains at least 10 times as many parameters in the last task.",
          compare_parameters, MAIN),
    Claim("compute", "LoRA needs no more compute to train than full fine-tuning",
          "Supported if LoRA's FLOPs of training are at most those of full fine-tuning, in every seed. Full "
          "fine-tuning is `naive`, or `independent` if the study has no `naive`.",
          compare_cost(training_flops, counted=True), MAIN),
    Claim("training-time", "LoRA trains in less time than full fine-tuning",
          "Supported if the whole interval of the ratio of processor times is below 1. Full fine-tuning is `naive`, or "
          "`independent` if the study has no `naive`. Records without processor times are left out.",
          compare_cost(training_seconds, counted=False), MAIN[1:]),  # the protocol of `answer` does not test costs
    Claim("many-tasks", "LoRA's storage grows slowly over many tasks",
          "Supported if the parameters after 50 tasks are at most twice those after the first task.", measure_growth,
          ("many_tasks",)),
    Claim("pnn-cost", "PNN costs more than LoRA", "Supported if PNN stores and trains more parameters than LoRA.",
          compare_pnn_cost, MAIN),
    Claim("ewc-weights", "EWC still updates all weights", "Supported if EWC trains at least 98% of the network.",
          compare_trained_share),
    Claim("er-buffer", "To match LoRA, ER needs a buffer that is larger than what LoRA adds to the network",
          "Class-IL only. Supported if LoRA is better than the best ER whose buffer needs no more bytes than what LoRA "
          "adds to the network: the whole interval is above 0. If the largest such buffer has less than half of "
          "these bytes, a better LoRA is inconclusive.", compare_at_equal_storage,
          ("memory", "vision_class", "text_class")),
    Claim("pretraining", "Pretraining decides whether LoRA works",
          "Supported if LoRA on the pretrained backbone is better than on the same network without published weights: "
          "the whole interval is above 0.", compare_with_no_pretraining, ("base",),
          "Two studies are compared, so the interval is Welch's over the seeds of both. LoRA is on q and v of the "
          "pretrained ViT, and on all layers of the others. The rows without published weights were untuned and "
          "underfit, and no full fine-tuning was run there. So this does not show that LoRA needs pretraining more "
          "than other methods do. The row of EfficientNet-Lite0 compares two pretrained backbones."),
    Claim("permuted-inputs", "LoRA loses accuracy on tasks that need more than a low-rank change",
          "Permuted pixels with task IDs, which no low-rank change of the first layer undoes. Supported if LoRA is "
          "more than 2 points worse than a method that trains whole networks.",
          compare_accuracy(is_below(-MARGIN), "independent", "pnn", "ewc", benchmark="permuted-mnist", scenario="task"),
          ("permuted_ranks",)),
    Claim("low-rank-change", "Full fine-tuning changes weights by a low rank",
          "Supported if a tenth of the possible ranks has 90% of the energy (squared singular values) of the change, "
          "in the median layer.", read_spectra, ("ranks", "text_ranks"),
          "`benchmarks/lora_question/low_rank.py` computes the singular values from saved weights."),
    Claim("rank-8", "Ranks of 8 and more are better than ranks 1 to 4",
          "Supported if the best rank from 8 to 16 is better than the best rank from 1 to 4.",
          compare_ranks(range(1, 5), range(8, 17)), ("ranks", "text_ranks", *MAIN), BEST_SHOWN),
    Claim("rank-32", "Ranks of 32 and more are better than ranks 8 to 16",
          "Supported if the best rank from 32 on is better than the best rank from 8 to 16.",
          compare_ranks(range(8, 17), range(32, 1025)), ("ranks", "text_ranks"), BEST_SHOWN),
    Claim("alpha", "A scale of alpha = r or alpha = 2r is nearly optimal",
          "Supported if the better of the two is less than 2 points worse than the best alpha, each at its best "
          "learning rate. The rank is 4.", compare_alphas, ("alpha",), BEST_SHOWN),
    Claim("layers", "Adapters on a few layers are enough",
          "Supported if LoRA of rank 4 on some layers is less than 2 points worse than on all layers.", compare_layers,
          ("layers",), BEST_SHOWN),
    Claim("test-images", "A fifth of the test images shows the same differences as all of them",
          "Supported if LoRA's difference to a method changes by less than 2 points when all test images are used: "
          "the whole interval is between -2 and 2.", compare_test_sets, ("vision_task_full",),
          "The two studies ran on different processors, which round differently."),
)
