"""Whatever an option or a file holds, it is taken or refused in one message; `experiments/fuzz` tries far more."""

import shutil
import time

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from experiments.fuzz.inputs import VALUES, alike, changed, node_at, paths, texts
from experiments.fuzz.trials import Hung, begins_only, bounded, document, ending, file_trials, option_trial
from tests.experiments import composed


def few(examples):
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


def test_an_option_of_any_value_is_taken_or_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = OmegaConf.to_container(composed(*tiny, "correction=ptqd"), resolve=True)
    with begins_only():
        assert ending(option_trial(cfg)) == "taken"

    @few(40)
    @given(
        st.sampled_from(paths(cfg)).flatmap(lambda path: st.tuples(st.just(path), VALUES | alike(node_at(cfg, path))))
    )
    def tried(case):
        path, value = case
        with begins_only():
            end = ending(option_trial(changed(cfg, path, value, False)))
        assert end in ("taken", "refused"), (path, value, end)

    tried()


@pytest.fixture(scope="module")
def readable(finished, tiny_model_folder, tmp_path_factory):
    """A trial for every JSON file of a copied experiment, by the file."""
    place = tmp_path_factory.mktemp("readable")
    shutil.copytree(finished[1], place / "outputs")
    shutil.copytree(tiny_model_folder(), place / "model")
    return file_trials(place / "outputs", place / "model")


def test_a_file_of_any_content_is_read_or_refused(readable):
    documents = {file: document(file) for file in readable}
    ends = []

    @few(80)
    @given(st.sampled_from(sorted(readable)).flatmap(lambda file: st.tuples(st.just(file), texts(documents[file]))))
    def tried(case):
        file, text = case
        whole = file.read_bytes()
        file.write_text(text)
        try:
            end = ending(readable[file])
        finally:
            file.write_bytes(whole)
        assert end in ("taken", "refused"), (file.name, text[:300], end)
        ends.append(end)

    assert {ending(trial) for trial in readable.values()} == {"taken"}
    tried()
    assert "refused" in ends


def test_a_trial_that_computes_or_waits_too_long_is_interrupted():
    with pytest.raises(Hung, match="SIGPROF.*test_fuzz"), bounded(computing=0.05):
        while True:
            pass
    with pytest.raises(Hung, match="SIGALRM"), bounded(waiting=0.05):
        time.sleep(60)
    with bounded(computing=0.05, waiting=0.05):
        pass
    time.sleep(0.1)
