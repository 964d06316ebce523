"""What the columns of a report mean, in a sentence that the page shows when a reader points at a header."""

from __future__ import annotations

from clbench.report.model import Column

MEANINGS = {  # by title
    "seeds": "Number of seeds with a result.",
    "ACC": "Mean accuracy over all tasks after the last one.",
    "ACC with task IDs": "Mean accuracy over all tasks after the last one, if the task of each test sample were given.",
    "forgetting": "How much worse the final value of a task is than its best one between its training and the last "
                  "task, averaged over all tasks but the last.",
    "BWT": "How much better the final value of a task is than that just after its training, averaged over all tasks "
           "but the last.",
    "task inference": "Share of test samples whose task the method infers correctly after the last task.",
    "trainable params per task": "Number of parameters that are trained in the last task.",
    "total params": "Number of all parameters that a method holds after the last task.",
    "bytes kept": "Size of everything that a method holds after the last task, including replay buffers.",
    "training compute": "Floating-point operations of the training on all tasks, including consolidation.",
    "training time": "Wall-clock time of the training on all tasks, including consolidation but no evaluation.",
    "AIA": "Mean accuracy over the tasks seen so far, averaged over the ends of all tasks.",
    "ACC-pooled": "Accuracy over the test samples of all tasks together, after the last task.",
    "AIA-pooled": "Accuracy over the test samples of the tasks seen so far together, averaged over the ends of all "
                  "tasks.",
    "AIA-pooled-all": "Accuracy over the test samples of all domains together, averaged over the ends of all tasks.",
    "learning accuracy": "Accuracy on each task just after its training, averaged over tasks.",
    "FWT": "How much better the value of a task just before its training is than that of the untrained model, averaged "
           "over all tasks but the first.",
    "intransigence": "How much worse the value of a task just after its training is than that of joint training, "
                     "averaged over tasks.",
    "replay samples": "Number of samples that a method stores for replay after the last task.",
    "inference compute": "Floating-point operations for one test sample after the last task.",
    "training CPU": "Processor time of training and consolidation over all threads.",
}
FAMILIES = {  # by the first word or words of the title or the heading; {} is the rest
    "difference to ": "Final mean minus that of {}, and the verdict of the test of this difference.",
    "final ": "Mean {} over all tasks after the last one.",
    "learned ": "Mean {} of each task just after its training, averaged over tasks.",
    "change of ": "Change of {} from before training to the end.",
}


def explain(column: Column) -> str:
    """Return what a column means, and its name in files; empty if there is nothing to add.

    >>> explain(Column("ACC", "percent", "up", "accuracy"))
    'Mean accuracy over all tasks after the last one. Its name in files is ACC.'
    """
    family = next((words.format(column.name.removeprefix(start)) for start, words in FAMILIES.items()
                   if column.name.startswith(start)), "")
    name = f"Its name in files is {column.title}." if column.heading not in ("", column.title) else ""
    return f"{MEANINGS.get(column.title, family)} {name}".strip()
