"""The real all-MiniLM-L6-v2 with an adapter of a run, where the data folder has it; needs peft and transformers."""

import warnings

import pytest
import torch
from clbench_lora import adapters, reload, run_adapters
from helpers.text_models import write_texts

import clbench
from clbench.core import files

FOLDER = files.default_data_dir() / "models" / "all-MiniLM-L6-v2"  # before a fixture names another data folder


@pytest.mark.skipif(not FOLDER.is_dir(),
                    reason=f"no {FOLDER.name} in the data folder: benchmarks/texts/fetch.py brings it")
def test_the_real_minilm_takes_an_adapter_with_plain_peft(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what their imports complain about
        peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")

    write_texts(tmp_path / "topics.csv", count=4)
    clbench.run(benchmark={"name": f"text:{tmp_path / 'topics.csv'}", "options": {"tasks": 2, "length": 16}},
                model=f"hf:{FOLDER}", methods="lora", epochs=1, seeds=1, scenario="task", lr=0.01, batch_size=8,
                workers=0, out=tmp_path / "run")
    source = run_adapters.find(tmp_path / "run")
    adapters.export(source, 0, tmp_path / "to")
    texts = ["the dog barks loudly", "a cat purrs", "far stars shine now"]
    batch = transformers.AutoTokenizer.from_pretrained(str(FOLDER))(texts, padding=True, return_tensors="pt")
    model = transformers.AutoModel.from_pretrained(str(FOLDER)).eval()
    model.head = torch.nn.Linear(384, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what PEFT asks transformers
        tuned = peft.PeftModel.from_pretrained(model, str(tmp_path / "to")).eval()
    there = batch["attention_mask"].unsqueeze(2)
    with torch.no_grad():
        hidden = tuned(**batch).last_hidden_state
        theirs = tuned.base_model.model.head((hidden * there).sum(1) / there.sum(1))
        x = torch.where(batch["attention_mask"] > 0, batch["input_ids"], -1).int()
        ours = reload.load(source, [0]).eval().predict(x, 0).logits
    assert (theirs - ours)[:, :2].abs().max() < 1e-5
