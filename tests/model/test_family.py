"""Every family asks its networks as stock diffusers does, and knows their layers, their patches and their work."""

import dataclasses
import importlib
import inspect
import math
import pkgutil

import pytest
import torch
from diffusers import FluxPipeline
from torch import nn

from ptq_diffusion.model import Condition, Kind, Role
from ptq_diffusion.model import family as package
from ptq_diffusion.model.diffusers_denoiser import Classes
from ptq_diffusion.model.family import FAMILIES, Family
from tests.model.networks import NETWORKS, around, condition_of, denoiser_of, random_network, small, states_of
from tests.steps import at

every_network = pytest.mark.parametrize("name", NETWORKS)
T = 321


def test_every_family_is_listed_and_tried():
    modules = [
        importlib.import_module(f"{package.__name__}.{it.name}") for it in pkgutil.iter_modules(package.__path__)
    ]
    classes = {kind for module in modules for _, kind in inspect.getmembers(module, inspect.isclass)}
    families = {kind for kind in classes if issubclass(kind, Family) and not inspect.isabstract(kind)}
    assert families == {type(family) for family in FAMILIES.values()}
    assert {network_class.__name__ for network_class, _ in NETWORKS.values()} == set(FAMILIES)


def stock(denoiser, x, condition):
    """The answer of the network as its own pipeline asks it."""
    network, count = denoiser.network, len(x)
    times = torch.tensor(T).expand(count)
    tensors = {} if condition is None else condition.tensors()
    embeddings = {"encoder_hidden_states": tensors.get("embeddings")}
    match type(network).__name__:
        case "UNet2DModel":
            return network(x, torch.tensor(T), tensors.get("labels"))
        case "UNet2DConditionModel":
            added = {"text_embeds": tensors.get("pooled"), "time_ids": tensors.get("ids")}
            return network(
                x, torch.tensor(T), class_labels=tensors.get("labels"), added_cond_kwargs=added, **embeddings
            )
        case "DiTTransformer2DModel":
            return network(x, timestep=times, class_labels=tensors["labels"])
        case "PixArtTransformer2DModel":
            added = {"resolution": torch.tensor([[64.0, 64.0]] * count), "aspect_ratio": torch.ones(count, 1)}
            masks = {"encoder_attention_mask": tensors["mask"]}
            return network(x, timestep=times, added_cond_kwargs=added, **embeddings, **masks)
        case "SD3Transformer2DModel":
            return network(x, timestep=times, pooled_projections=tensors["pooled"], **embeddings)
        case "SanaTransformer2DModel":
            return network(x, timestep=times * 0.5, encoder_attention_mask=tensors["mask"], **embeddings)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "flux"])
def test_the_answer_is_that_of_the_stock_network(name):
    denoiser = denoiser_of(name)
    x, condition = states_of(denoiser), condition_of(denoiser)
    expected = stock(denoiser, x, condition).sample
    m = denoiser.predict(x, at(T), condition).m
    assert m.shape == x.shape and m.abs().max() > 0.01
    # A network with twice the channels also predicts a variance, which is not part of m.
    assert torch.equal(m, expected[:, : x.shape[1]])


def test_flux_is_asked_as_its_pipeline_packs_the_states():
    denoiser = denoiser_of("flux")
    x, condition = states_of(denoiser), condition_of(denoiser)
    count, channels, height, width = x.shape
    tokens = denoiser.network(
        FluxPipeline._pack_latents(x, count, channels, height, width),
        encoder_hidden_states=condition.embeddings,
        pooled_projections=condition.pooled,
        timestep=torch.tensor(float(T)).expand(count) / 1000,
        img_ids=FluxPipeline._prepare_latent_image_ids(count, height // 2, width // 2, "cpu", x.dtype),
        txt_ids=torch.zeros(condition.embeddings.shape[1], 3),
        guidance=condition.scale,
    ).sample
    expected = FluxPipeline._unpack_latents(tokens, 8 * height, 8 * width, 8)
    assert torch.equal(denoiser.predict(x, at(T), condition).m, expected)


@every_network
def test_every_sample_is_answered_alone_and_every_tensor_of_the_condition_matters(name):
    denoiser = denoiser_of(name)
    x, condition = states_of(denoiser), condition_of(denoiser)
    m = denoiser.predict(x, at(T), condition).m
    alone = denoiser.predict(x[1:], at(T), None if condition is None else condition.rows(slice(1, 2))).m
    torch.testing.assert_close(alone, m[1:], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(denoiser.predict(x, at(T + 100), condition).m, m)
    for field, tensor in ({} if condition is None else condition.tensors()).items():
        other = tensor.flip(0) if field == "labels" else torch.ones_like(tensor) if field == "mask" else tensor + 1
        changed = dataclasses.replace(condition, **{field: other})
        assert not torch.allclose(denoiser.predict(x, at(T), changed).m, m, rtol=1e-6, atol=1e-7), field


@every_network
def test_the_output_layer_on_the_features_gives_the_answer(name):
    """Patches included: the output layer acts on every position of the map, and the map's positions become pixels."""
    denoiser = denoiser_of(name)
    x, condition, calls = states_of(denoiser), condition_of(denoiser), []
    layer = denoiser.network.get_submodule(denoiser.family.last)
    with layer.register_forward_hook(lambda _, inputs, __: calls.append(inputs[0])):
        m = denoiser.predict(x, at(T), condition).m
    (inputs,) = calls
    side = denoiser.patch_size
    features = denoiser.feature_map(inputs, x.shape[2:])
    assert features.shape == (len(x), layer.weight.shape[1], x.shape[2] // side, x.shape[3] // side)
    linear = isinstance(layer, nn.Linear)
    patches = layer(features.movedim(1, -1)).movedim(-1, 1) if linear else layer(features)
    assert torch.equal(denoiser.unpatched(patches), m)
    # One position decides its own patch and no other pixel, where the layer looks at one position.
    if linear:
        features[0, :, 1, 2] += 1
        changed = denoiser.unpatched(layer(features.movedim(1, -1)).movedim(-1, 1)) != m
        expected = torch.zeros_like(changed)
        expected[0, :, side : 2 * side, 2 * side : 3 * side] = True
        assert torch.equal(changed, expected)


@every_network
def test_sites_are_the_layers_with_roles_and_work_by_hand(name):
    denoiser = denoiser_of(name)
    layers = {
        name: layer for name, layer in denoiser.network.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)
    }
    sites = denoiser.sites()
    assert [site.name for site in sites if site.weighted] == list(layers)
    by_role = {site.role: site for site in sites}
    first, last = by_role[Role.FIRST], by_role[Role.LAST]
    assert (first.name, last.name) == (denoiser.family.first, denoiser.family.last)
    # Every position of the output layer takes as many as its weight has numbers.
    positions = math.prod(denoiser.shape[1:]) // denoiser.patch_size**2
    assert first.macs == positions * math.prod(first.weight_shape)
    assert last.macs == positions * math.prod(last.weight_shape)
    assert all(site.macs > 0 for site in sites)
    products = [site for site in sites if site.kind is Kind.MATMUL]
    attentions = denoiser.family.attentions(denoiser.network)
    assert len(products) == 2 * len(attentions)
    # Products that are no sites are counted all the same.
    assert bool(denoiser.attention_macs()) == (name in ("sd3", "flux", "sana"))


def test_work_of_products_by_hand():
    """L x L' x C: 4 x 4 tokens of 12 channels among themselves, and with the 120 of a prompt."""
    macs = {site.name: site.macs for site in denoiser_of("pixart").sites()}
    assert macs["transformer_blocks.0.attn1.qk"] == macs["transformer_blocks.0.attn1.pv"] == 16 * 16 * 12
    assert macs["transformer_blocks.1.attn2.qk"] == 16 * 120 * 12
    assert macs["transformer_blocks.1.attn2.to_k"] == 120 * 12 * 12
    # Attention of image and prompt together: two products in each of two blocks, 16 + 333 tokens of 12 channels.
    assert denoiser_of("sd3").attention_macs() == 2 * 2 * 349 * 349 * 12


@every_network
def test_blocks_are_in_order_and_not_inside_each_other(name):
    denoiser = denoiser_of(name)
    blocks, names = denoiser.family.blocks(denoiser.network), [name for name, _ in denoiser.network.named_modules()]
    assert len(blocks) >= 2 and blocks == sorted(blocks, key=names.index)
    assert not any(block.startswith(f"{other}.") for block in blocks for other in blocks)


@every_network
def test_conditions_that_do_not_fit_are_refused_in_one_line(name):
    denoiser = denoiser_of(name)
    x, condition = states_of(denoiser), condition_of(denoiser)
    needs = list(denoiser.needs)
    surplus = "pooled" if "pooled" not in needs else "labels"
    tensors = {} if condition is None else condition.tensors()
    with pytest.raises(ValueError, match=f"expected .*condition.*, got {surplus}; leave it out"):
        denoiser.predict(x, at(T), Condition(**tensors | {surplus: torch.zeros(2, 3)}))
    if needs:
        with pytest.raises(ValueError, match=f"expected a condition of {', '.join(needs)} .*; set condition="):
            denoiser.predict(x, at(T), None)
    for need in needs[1:]:
        with pytest.raises(ValueError, match=f"got one without {need}; set condition=prompts"):
            denoiser.predict(x, at(T), Condition(**{field: it for field, it in tensors.items() if field != need}))


def test_labels_are_those_of_the_classes_and_of_no_class():
    for name, classes, last in (("classes", 5, 4), ("dit", 10, 10)):
        denoiser = denoiser_of(name)
        assert denoiser.classes == classes
        null = denoiser.null
        assert null is None if name == "classes" else null.labels.tolist() == [10]
        ask = lambda *labels: denoiser.predict(states_of(denoiser), at(T), Condition(labels=torch.tensor(labels)))  # noqa: B023, E731
        ask(0, last)
        for labels in ((0, last + 1), (-1, 0)):
            with pytest.raises(ValueError, match=f"expected labels from 0 to {last}, got labels from"):
                ask(*labels)


def test_a_folder_that_names_all_classes_but_the_last_leaves_it_for_none():
    network = random_network("classes")
    denoiser = around(network, Classes(4))
    assert denoiser.classes == 4 and denoiser.null.labels.tolist() == [4]
    assert around(network, Classes(5)).null is None and around(network, Classes(3)).null is None
    dit = around(random_network("dit"), Classes(3))
    assert dit.classes == 3 and dit.null.labels.tolist() == [10]
    with pytest.raises(ValueError, match="names of at most the 5 classes .* got 6"):
        around(network, Classes(6))


def test_labels_stand_for_tokens_where_the_folder_has_their_embeddings():
    network, table = random_network("stable diffusion"), torch.randn(4, 6, generator=torch.Generator().manual_seed(3))
    denoiser, plain = around(network, Classes(3, table)), denoiser_of("stable diffusion")
    assert (denoiser.needs, denoiser.classes, denoiser.null.labels.tolist()) == (("labels",), 3, [3])
    x, labels = states_of(denoiser), torch.tensor([2, 3])
    m = denoiser.predict(x, at(T), Condition(labels=labels)).m
    assert torch.equal(m, plain.predict(x, at(T), Condition(embeddings=table[labels][:, None])).m)
    # One token in place of the 77 of a prompt.
    keys = [next(site for site in it.sites() if site.name.endswith("attn2.to_k")) for it in (denoiser, plain)]
    assert [site.macs / math.prod(site.weight_shape) for site in keys] == [1, 77]
    assert denoiser.fingerprint() != plain.fingerprint()
    for condition, message in (
        (Condition(labels=torch.tensor([0, 4])), "expected labels from 0 to 3, .* got labels from 0 to 4"),
        (None, "expected a condition of labels"),
    ):
        with pytest.raises(ValueError, match=message):
            denoiser.predict(x, at(T), condition)
    with pytest.raises(ValueError, match="got one of dim 5 beside a UNet2DConditionModel that reads embeddings of"):
        around(network, Classes(3, torch.zeros(4, 5)))


def test_learned_times_are_whole_and_equal_to_stock():
    network = small(time_embedding_type="learned", num_train_timesteps=10)
    denoiser = around(network)
    x = states_of(denoiser)
    assert torch.equal(denoiser.predict(x, at(9)).m, network(x, 9).sample)
    assert denoiser.sites()
    for t in (2.5, 10, -1):
        with pytest.raises(ValueError, match=f"expected a whole time from 0 to 9, .* got {float(t)}"):
            denoiser.predict(x, at(t))


REFUSED = {
    "an image beside the state": ("stable diffusion", {"in_channels": 9}, "9 input and 4 output channels, which is"),
    "an image beside tokens": ("flux", {"out_channels": 4}, "8 input and 4 output channels, which is conditioned by"),
    "other channels": ("dit", {"out_channels": 7}, "expected as many output channels as the 4 .* got 7"),
    "an embedded image": ("stable diffusion", {"class_embed_type": "projection"}, "class_embed_type=None, got 'proj"),
    "an embedded text": ("sdxl", {"addition_embed_type": "text"}, "addition_embed_type=None or text_time, got 'text'"),
    "embedded guidance": ("stable diffusion", {"time_cond_proj_dim": 8}, "time_cond_proj_dim=None, got 8"),
    "no size": ("stable diffusion", {"sample_size": None}, "expected a UNet2DConditionModel with a sample_size"),
    "a size that patches do not divide": ("sd3", {"sample_size": 9}, "a multiple of patch_size = 2, got 9x9"),
    "odd channels": ("flux", {"in_channels": 6}, "of 2x2 latent pixels"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_networks_that_cannot_be_asked_are_refused(name, options, message):
    network_class, defaults = NETWORKS[name]
    config = {
        option: parameter.default for option, parameter in inspect.signature(network_class.__init__).parameters.items()
    }
    with pytest.raises(ValueError, match=message):
        FAMILIES[network_class.__name__].shape(config | defaults | options)
