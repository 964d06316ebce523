"""What people say of LoRA in continual learning, the rule that each sentence is judged by, and the test of the rule."""

from __future__ import annotations

from evidence import Claim
from experiments import (
    added_and_removed,
    base_decides,
    low_rank,
    many_tasks,
    more_test_images,
    some_layers,
    usual_alpha,
)
from tested import (
    ALMOST_ALL,
    against,
    all_weights,
    costs_less,
    expensive,
    fewer_parameters,
    flops,
    general_features,
    needs_memory,
    needs_more_than_low_rank,
    no_interference,
    rank_matters,
    seconds,
    without_id,
)

RIVALS = ("Holds where LoRA is less than 2 points worse (see above). Not decided where the other was trained by a "
          "recipe that ruins the base, so that it ends below heads alone, and no better one was searched for.")
SHARED = ("seq-lora", "inflora", "ewc-lora", "sd-lora", "o-lora")
MAIN = ("vision_task", "vision_class", "efficientnet_class", "text_task", "text_class")
CHOSEN = "The best rows are chosen by the accuracies shown, which flatters both sides."
CLAIMS = (
    Claim("10 to 100 times fewer trainable parameters per task",
          "Holds where full fine-tuning trains at least 10 times as many parameters in the last task as LoRA does; "
          "beside it the accuracy that this costs.", fewer_parameters, MAIN),
    Claim("LoRA rivals EWC", RIVALS, against("ewc"), MAIN),
    Claim("LoRA rivals ER", RIVALS, against("er"), MAIN,
          "ER keeps samples, LoRA none; with a larger memory ER gains."),
    Claim("LoRA rivals PNN", RIVALS, against("pnn"), MAIN,
          "On a pretrained base the paper's PNN is a weak rival: its later columns start from random weights. With "
          "`pnn:start=base` they start from the base, as all that LoRA does."),
    Claim("LoRA rivals shared-private", RIVALS, against("shared-private"), MAIN),
    Claim("LoRA rivals adapters that tasks share", RIVALS, against(*SHARED),
          ("vision_family_task", "vision_family_class", "sgd"),
          "`sd-lora` is trained by SGD, as in its paper; in the study `sgd` LoRA is, too."),
    Claim("LoRA rivals closed forms on the frozen base", RIVALS, against("ncm", "slda", "ranpac"),
          (*MAIN, "vision_family_class", "text_ridges"),
          "They train no layer below the head, or none at all. `ranpac` chooses its ridge on the last task's samples. "
          "On texts these are 20, and [it chooses badly](../reports/lora_question/text_ridges/report.md), so it has "
          "a row with a searched `ridge` too."),
    Claim("LoRA rivals joint training", RIVALS, against("joint"), MAIN,
          "Joint training sees all tasks at once, and is what continual learning gives up."),
    Claim("LoRA needs less compute to train",
          "Counted: floating-point operations of training and consolidation. Holds where those of every seed are at "
          "most those of naive fine-tuning (of EWC where there is no naive).", costs_less("FLOPs", flops), MAIN),
    Claim("LoRA trains as fast or faster",
          "Measured: seconds of the processor for training and consolidation, compared as above; not decided where "
          "seeds differ.", costs_less("seconds", seconds), MAIN),
    Claim("Tasks do not interfere", "Holds where no test accuracy of a learned task ever changed, in any seed.",
          no_interference, MAIN),
    Claim("Tasks can be added and removed",
          "Holds where, in every case, all logits of all test samples are the same.", added_and_removed, (),
          "Made by `clbench run --methods lora --scenario task --seeds 3 --out RUN`, then `python "
          "benchmarks/lora_question/add_remove.py RUN --out reports/lora_question/add_remove.json`; on the ViT with "
          "seed 0 of `lora` in the run of vision_task."),
    Claim("Without the task id little is lost", "Holds where less than 2 points are lost.", without_id, MAIN),
    Claim("Ranks 1 to 4 limit: 8 and more are better",
          "Holds where the best rank from 8 to 16 is better than the best from 1 to 4, each at the better of its "
          "learning rates.", rank_matters(range(1, 5), range(8, 17)), ("ranks", "text_ranks", *MAIN), CHOSEN),
    Claim("The change of the weights is of low rank",
          "Of full fine-tuning, by the singular values of its change of each weight W (energy: their squares). Holds "
          "where, in the median layer, a tenth of the possible ranks hold 90 % of it.", low_rank,
          ("ranks", "text_ranks"),
          "Made by `python benchmarks/lora_question/low_rank.py RUN ...` from the weights that runs keep."),
    Claim("Ranks of 32 and more are better still",
          "Holds where the best rank from 32 on is better than the best from 8 to 16, each at the better of its "
          "learning rates.", rank_matters(range(8, 17), range(32, 1025)), ("ranks", "text_ranks"), CHOSEN),
    Claim("alpha = r or 2r is right",
          "Holds at a learning rate where the better of the two is less than 2 points worse than the best alpha at any "
          "learning rate. r is 4.", usual_alpha, ("alpha",),
          "The best of all is chosen by the accuracies shown, which flatters it."),
    Claim("A few layers are enough",
          "Holds where LoRA on some layers is less than 2 points worse than on all, each at the better of its learning "
          "rates.", some_layers, ("layers",), CHOSEN),
    Claim("LoRA scales to many tasks",
          "Holds where all parameters after 50 tasks are at most twice those after the first.", many_tasks,
          ("many_tasks",)),
    Claim("ER needs memory",
          "Without the task id. Holds where LoRA is better than ER with a memory of at most as many bytes as LoRA "
          "keeps beside the network.", needs_memory, ("memory", "vision_class", "text_class")),
    Claim("The base decides",
          "Holds where LoRA on the pretrained base is better than on the same network without it, and, of two "
          "pretrained bases, where its accuracies differ.", base_decides, ("base", "efficientnet_class"),
          "LoRA is on q and v of the pretrained ViT; on EfficientNet-Lite0, and where nothing is pretrained, on all "
          "layers: its defaults there."),
    Claim("EWC still updates all weights",
          f"Holds where EWC trains at least {100 * ALMOST_ALL:.0f} % of the network.", all_weights),
    Claim("PNN works but is expensive", "Holds where it keeps and trains more than LoRA; whether it works is above.",
          expensive, MAIN),
    Claim("LoRA fails where tasks need more than low rank",
          "Permuted pixels: no low-rank change of a first layer undoes a permutation. Holds where LoRA is more than 2 "
          "points worse than a method that trains whole networks.", needs_more_than_low_rank, ("permuted_ranks",)),
    Claim("Private heads need features that are general; adapters do not",
          "Holds where LoRA is more than 2 points better than heads on the frozen encoder.", general_features, MAIN),
    Claim("A fifth of the test images tells what all of them tell",
          "What a reviewer would ask of this page: the studies on Split-CIFAR-100 are tested on the first 20 of the "
          "100 test images of each class. Holds where LoRA's lead over a method, trained in the same way with the "
          "same seeds, changes by less than 2 points if all are used.", more_test_images, ("vision_task_full",),
          "The runs on all images are of another processor, which rounds differently, so that the networks are not "
          "the same to the bit. That study is one more in the tables above, marked as of all test images."),
)
