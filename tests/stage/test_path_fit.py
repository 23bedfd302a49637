"""A fit along a path asks the float network about as many images as the correction says, each once a step."""

from dataclasses import replace

import pytest
import torch

from ptq_diffusion.correction import Reads, StepCorrection
from ptq_diffusion.correction.step_report import StepReport
from ptq_diffusion.model import DiffusersDenoiser
from ptq_diffusion.network import QuantizedLayer
from ptq_diffusion.numeric.seed import SampleNoise
from ptq_diffusion.sampler import sample
from ptq_diffusion.stage import path_fit
from ptq_diffusion.stage.fitting import step_files
from ptq_diffusion.stage.path_fit import PathFit

STEPS, IMAGES = 2, 15


@pytest.fixture
def fit(make, outputs):
    """Fit a correction, anew whatever was fitted before."""
    return lambda *words: make("goal=fit", f"outputs={outputs}", "force=fit", *words)


def rows_asked(fit, monkeypatch, *words):
    """Of the float network along the corrected path."""
    asked, go, predict = [], PathFit.fit, DiffusersDenoiser.predict

    def recorded(denoiser, x_t, step, condition=None):
        if not any(isinstance(module, QuantizedLayer) for module in denoiser.network.modules()):
            asked.append(len(x_t))
        return predict(denoiser, x_t, step, condition)

    def going(walk, *words):
        with monkeypatch.context() as patch:
            patch.setattr(DiffusersDenoiser, "predict", recorded)
            return go(walk, *words)

    monkeypatch.setattr(PathFit, "fit", going)
    fit(f"noise.images={IMAGES}", f"sampler.steps={STEPS}", *words)
    return asked


def followed(fit, monkeypatch, *words):
    """The fit, of every step (step, batches with m, batches without), and the rows asked of the float network."""
    seen, fits, diagnosed, go = [], [], path_fit.fit_step_diagnosed, PathFit.fit

    def recorded(correction, evidence, step, before):
        seen.append((step, list(evidence.paired), list(evidence.unpaired)))
        return diagnosed(correction, evidence, step, before)

    monkeypatch.setattr(path_fit, "fit_step_diagnosed", recorded)
    monkeypatch.setattr(PathFit, "fit", lambda own, *words: fits.append(own) or go(own, *words))
    asked = rows_asked(fit, monkeypatch, *words)
    (own,) = fits
    return own, seen, asked


POOLED = ["correction=rescaled", "correction.path=float", "gain_steps@correction.steps=pooled"]
RESCALED_MATCHED = ["correction=rescaled_matched", "correction.links.rescaled.images=9"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["correction=matched", "correction.images=6"], 6),
        (["correction=readout_matched", "correction.links.matched.images=64"], IMAGES),
        (["correction=rescaled", "correction.images=9"], 9),
        ([*RESCALED_MATCHED, "correction.links.matched.images=6"], (9, 6)),
        ([*RESCALED_MATCHED, "correction.links.matched.images=13"], 13),
        ([*RESCALED_MATCHED, "correction.links.matched.images=6", "micro_batch=16"], (9, 6)),
        (["correction=tac"], IMAGES),
        (["correction=tac", "micro_batch=16"], IMAGES),
        (["correction=wiener"], (0, IMAGES)),  # along float sampling, where m is known of all
        # Of all steps before the first is fitted, and at each step again
        ([*POOLED, "correction.images=9"], (18, IMAGES)),
    ],
    ids=str,
)
def test_every_image_is_seen_once_with_what_the_float_network_says_of_it(fit, monkeypatch, words, expected):
    """Of the first images it is asked, once about each; rescaling may ask of more than the correction is fitted on."""
    told, expected = expected if isinstance(expected, tuple) else (expected, expected)
    own, seen, rows = followed(fit, monkeypatch, *words)
    assert sum(rows) == STEPS * told
    model, seed = own.model, own.chunks[0].seed
    for step, asked, others in seen:
        assert indices(asked) == list(range(expected)) and indices(others) == list(range(expected, IMAGES))
        for batch in asked:
            assert torch.allclose(batch.m, model.predict(batch.x_t, step).m, atol=1e-5)
        for batch in (*asked, *others):
            assert torch.allclose(batch.float_m, model.predict(batch.float_x_t, step).m, atol=1e-5)
            if step.i == 0:
                drawn = SampleNoise(seed, indices([batch]), model.shape, "noise").draw()
                assert torch.equal(batch.x_t, drawn) and torch.equal(batch.float_x_t, drawn)
    assert [step.i for step, *_ in seen] == list(range(STEPS))


@pytest.mark.parametrize(
    "words",
    [
        ["correction=readout_matched", "correction.links.matched.variance=rule", "correction.links.matched.images=10"],
        ["correction=rescaled_matched", "correction.links.matched.images=10"],
        ["correction=wiener"],
    ],
    ids=" ".join,
)
def test_a_path_goes_on_from_what_was_fitted_with_the_noise_of_its_images(fit, monkeypatch, words):
    """On a corrected path the next state is the step's mean of m~, and sigma' times the image's own noise."""
    own, seen, _ = followed(fit, monkeypatch, *words)
    noise = SampleNoise(own.chunks[0].seed, range(IMAGES), own.model.shape, "noise")
    first, second = ({name: joined([*asked, *others], name) for name in NAMES} for _, asked, others in seen)
    assert torch.equal(first["x_t"], noise.draw())
    z, step, found = noise.draw(), own.steps[0], own.fitted[0]
    float_next = step.mean(first["float_x_t"], first["float_m"]) + step.sigma * z
    assert torch.allclose(second["float_x_t"], float_next, atol=1e-5)
    m = found.output(first["q"], first["x_t"], first["features"])
    corrected = step.mean(first["x_t"], m) + found.sigma * z
    along = own.correction.reads is Reads.CORRECTED_PATH
    assert torch.allclose(second["x_t"], corrected if along else float_next, atol=1e-5)
    assert step.sigma > 0 and not torch.allclose(corrected, float_next, atol=1e-3)


def test_a_path_under_a_multistep_sampler_has_the_noise_that_sampling_has(fit, monkeypatch):
    """Such a sampler meets the residual of a step again at the next one, for which sigma' there makes room."""
    words = ("sampler=dpm_solver", "sampler.sde=true", "correction=path_ptqd")
    monkeypatch.setitem(globals(), "STEPS", 4)
    own, *_ = followed(fit, monkeypatch, *words)
    assembled = own.correction.assembled(own.fitted, own.steps).corrections
    assert [one.sigma for one in own.fitted] == [one.sigma for one in assembled]
    rows = list(zip(own.fitted, own.steps, strict=True))
    assert any(one.sigma != one.residual.sigma(step) for one, step in rows)
    for one, step in rows:
        assert one.report.budget is None or one.sigma**2 == pytest.approx(
            max(step.sigma**2 * (1 - one.report.budget), 0)
        )


def test_no_more_than_two_steps_lie_on_the_disk(fit, monkeypatch):
    lying, fit_step = [], PathFit._fit_on_files

    def counted(own, step):
        lying.append(len(list(own.folder.glob("step-*"))))
        return fit_step(own, step)

    monkeypatch.setattr(PathFit, "_fit_on_files", counted)
    fit("correction=matched", f"noise.images={IMAGES}", "sampler.steps=4")
    assert lying == [1, 2, 2, 2]


NAMES = ("q", "x_t", "features", "float_m", "float_x_t")


def joined(batches, name):
    """One field of all images in their order."""
    return torch.cat([getattr(batch, name) for batch in sorted(batches, key=lambda batch: batch.first)])


def indices(batches):
    return [batch.first + place for batch in batches for place in range(len(batch.q))]


def test_states_that_are_known_before_a_fit_are_those_of_its_float_path(fit, monkeypatch):
    own, seen, _ = followed(fit, monkeypatch, *POOLED, "correction.images=9")
    ahead = list(own.images.float_states(9, own.model.shape, own.steps, torch.device("cpu")))
    for state, (step, asked, _) in zip(ahead, seen, strict=True):
        assert state.step == step and torch.equal(state.x_t, joined(asked, "x_t")[:9])
    gains = [correction.rescalings["conv_in"].gain for correction in own.fitted if correction.rescalings]
    assert len(gains) == STEPS and torch.equal(*gains)


@pytest.mark.parametrize("correction", ["wiener", "readout"])
def test_along_float_sampling_it_is_not_asked_again(fit, monkeypatch, correction):
    assert rows_asked(fit, monkeypatch, f"correction={correction}", "correction.path=float") == []


@pytest.mark.parametrize("correction", ["tac", "wiener"])
def test_predictions_that_later_steps_read_are_kept_on_the_way(fit, monkeypatch, correction):
    """Without repairs, states are those of the loop on a table whose steps read the prediction before theirs."""
    seen, fits, go = [], [], PathFit.fit

    def states(own, model, chunk):
        return list(sample(lambda x, step: model.predict(x, step).m, own.steps, chunk.noise(own.model.shape)))

    def unrepaired(_, evidence, step, before):
        seen.append(list(evidence.paired))
        report = StepReport(step.t, 0.0, 0.0, 0.0, step.sigma, step.sigma, 1.0, None, 1.0, step.snr)
        return StepCorrection((), step.sigma, report)

    def going(own, *words):
        rows = (replace(step, c_0=(*step.c_0, 0.3 if step.i else 0.0)) for step in own.steps)
        own.steps = own.steps.with_steps(rows)
        own.float_m = lambda chunk, step: states(own, own.model, chunk)[step.i].m
        fits.append(own)
        return go(own, *words)

    monkeypatch.setattr(path_fit, "fit_step_diagnosed", unrepaired)
    monkeypatch.setattr(PathFit, "fit", going)
    fit(f"correction={correction}", "noise.images=4", "sampler.steps=4", "micro_batch=4")
    (own,) = fits
    (chunk,) = own.chunks
    float_visits = states(own, own.model, chunk)
    visits = float_visits if own.correction.reads is Reads.FLOAT_PATH else states(own, own.quantized, chunk)
    assert len(seen) == len(visits) == 4
    for asked, visit, float_visit in zip(seen, visits, float_visits, strict=True):
        assert torch.allclose(joined(asked, "x_t"), visit.x_t, atol=1e-5)
        assert torch.allclose(joined(asked, "float_x_t"), float_visit.x_t, atol=1e-5)
    for asked, before, float_before in zip(seen[1:], visits, float_visits, strict=False):
        for name, visit in (("past", before), ("float_past", float_before)):
            (x_0,) = zip(*(getattr(batch, name) for batch in asked), strict=True)
            assert torch.allclose(torch.cat(x_0), visit.step.predict_x_0(visit.x_t, visit.m), atol=1e-5)
    unread = own.steps.with_steps(replace(step, c_0=step.c_0[:1]) for step in own.steps)
    assert not torch.allclose(
        visits[2].x_t, list(sample(lambda _, s: visits[s.i].m, unread, chunk.noise(own.model.shape)))[2].x_t, atol=1e-3
    )


@pytest.mark.parametrize("correction", ["tac", "rescaled_matched"])
def test_the_file_of_a_chunk_is_opened_once_a_step_and_closed_with_it(fit, monkeypatch, correction):
    opened, closed, load, forget = [], [], step_files.load_file, step_files.ChunkFiles.forget

    def forgetting(files, folder):
        forget(files, folder)
        closed.append({file.parent.name for file in files._tensors})

    monkeypatch.setattr(step_files, "load_file", lambda file: opened.append(file) or load(file))
    monkeypatch.setattr(step_files.ChunkFiles, "forget", forgetting)
    fit(f"correction={correction}", "noise.images=16", "sampler.steps=3")
    assert len(opened) == len(set(opened)) == 4 * 3
    assert closed == [{"step-0000"}, {"step-0001"}, {"step-0002"}]
