import subprocess
import sys

import pytest
from clbench_example.report import escape, heading

import clbench


def test_the_strategy_keeps_the_rules(clbench_check):
    clbench_check("mean-imm")


def test_the_weights_are_the_mean_of_what_the_tasks_led_to(clbench_bench):
    naive, merged = clbench_bench("naive"), clbench_bench("mean-imm")
    for bench in (naive, merged):
        bench.learn(0)
    first = [p.clone() for p in naive.strategy.parameters()]
    assert all((p == q).all() for p, q in zip(first, merged.strategy.parameters(), strict=True))
    for bench in (naive, merged):
        bench.learn(1)
    for one, two, mean in zip(first, naive.strategy.parameters(), merged.strategy.parameters(), strict=True):
        assert mean.detach().numpy() == pytest.approx((one + two).detach().numpy() / 2, abs=1e-6)


def test_all_three_in_one_run(tmp_path):
    records = clbench.run(methods="mean-imm,naive", benchmark="noisy-digits:tasks=2:noise=80", seeds=1, iterations=30,
                          workers=0, threads=1, device="cpu", out=tmp_path)
    assert [r.status for r in records] == ["done", "done"]
    assert records[0].provenance.plugin == "clbench-plugin-example 0.1.0"
    assert records[0].stream.train_samples == [4000, 4000]
    assert records[0].stream.notes == []  # a note would say that the data set is read item by item, which is slower
    assert records[0].R[-1][0] > 0.5  # ten digits: chance is 0.1
    subprocess.run([sys.executable, "-m", "clbench", "report", tmp_path, "--format", "rst"], check=True)
    text = (tmp_path / "report.rst").read_text()
    assert "\n" + heading("noisy-digits, Domain-IL, mlp", "-") in text
    assert "mean-imm" in text


def test_text_from_records_is_escaped():
    assert escape("*a*|b_ `c` \\d") == r"\*a\*\|b\_ \`c\` \\d"
