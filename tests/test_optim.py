"""
Roles and groups of the optimizer, its kinds, AdamW against torch's, state. Muon's mathematics: tests/test_muon.py.

python -m pytest tests/test_optim.py -q
"""

import copy

import pytest
import torch
from closed_form import RATES, fill, set_gradients, uniform
from rows_case import OFF, ROWS, config_of

from nanochat.gpt import build_model
from nanochat.layers.layer import roles_of
from nanochat.layers.norm import Norm
from nanochat.optim import KINDS, MuonAdamW, apply_schedule, make_group, setup_optimizer

torch.set_num_threads(1)


def make(dtype=torch.float32, **changes):
    return fill(build_model(config_of(changes), "cpu", dtype, seed=0))


@pytest.mark.parametrize("changes", [{}, OFF, *({name: value} for name, value in OFF.items()), *ROWS.values(),
                                     {"n_layer": 1}], ids=str)
def test_every_parameter_is_in_exactly_one_group(changes):
    model = make(**changes)
    grouped = [id(p) for group in setup_optimizer(model, **RATES).param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())


def test_parameter_that_belongs_nowhere_is_an_error():
    model = make()
    model.stray = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(AssertionError, match="stray"):
        setup_optimizer(model, **RATES)


def test_vector_that_claims_to_be_a_matrix_is_an_error():
    model = make()
    model.stray = torch.nn.Parameter(torch.zeros(3))
    model.roles = {**model.roles, "stray": "matrix"}
    with pytest.raises(AssertionError, match="Muon needs matrices.*stray"):
        setup_optimizer(model, **RATES)


def test_gain_inside_a_block_is_trained_by_adamw_without_decay():
    model = make()
    model.transformer.h[1].mlp_norm = Norm(48, gain=True)
    model.transformer.h[1].init_weights()
    gain = model.transformer.h[1].mlp_norm.weight
    optimizer = setup_optimizer(model, **RATES)
    group, = (group for group in optimizer.param_groups if any(p is gain for p in group["params"]))
    assert (group["kind"], group["params"], group["weight_decay"]) == ("adamw", [gain], 0.0)
    set_gradients(model, 0)
    optimizer.step()
    assert (gain != 1).all() and gain.isfinite().all()


def test_groups_of_the_default_model_come_from_roles_whatever_its_parameters_are_called():
    model = make()
    assert set(roles_of(model).values()) == {"head", "embedding", "value_embedding", "resid_scalar", "x0_scalar",
                                             "smear_gate", "smear_scalar", "matrix", "value_gate"}
    named = setup_optimizer(model, **RATES).param_groups
    model.blocks = model.transformer.h  # the same modules, found under another name first
    modules = dict(model._modules)
    model._modules.clear()
    model._modules.update(blocks=modules.pop("blocks"), **modules)
    renamed = setup_optimizer(model, **RATES).param_groups
    assert any(name.startswith("blocks.") for name in roles_of(model))
    assert [[id(p) for p in group["params"]] for group in renamed] == [[id(p) for p in g["params"]] for g in named]


def test_groups_have_their_members_rates_and_betas():
    model = make()
    names = {id(p): name for name, p in model.named_parameters()}
    s = (48 / 768) ** -0.5
    groups = setup_optimizer(model, **RATES).param_groups
    adamw = [([names[id(p)] for p in g["params"]], g["lr"], g["betas"], g["weight_decay"])
             for g in groups if g["kind"] == "adamw"]
    assert adamw == [
        (["lm_head.weight"], 0.008 * s, (0.8, 0.96), 0.01), (["transformer.wte.weight"], 0.3 * s, (0.8, 0.995), 0.001),
        (["value_embeds.1.weight", "value_embeds.3.weight"], 0.5 * 0.3 * s, (0.8, 0.995), 0.01),
        (["resid_lambdas"], 0.01 * 0.5, (0.8, 0.95), 0.05), (["x0_lambdas"], 0.5, (0.96, 0.95), 0.0),
        (["smear_gate.weight", "smear_lambda", "backout_lambda"], 0.2, (0.8, 0.95), 0.0)]
    muon = [g for g in groups if g["kind"] == "muon"]
    assert [tuple(g["params"][0].shape) for g in muon] == [(2, 12), (24, 48), (48, 48), (48, 192), (192, 48)]
    for g in muon:
        assert (g["lr"], g["weight_decay"], g["beta2"], g["ns_steps"]) == (0.02, 0.28, 0.9, 5)
        assert all(names[id(p)].startswith("transformer.h.") and p.shape == g["params"][0].shape for p in g["params"])
    assert all(g["initial_lr"] == g["lr"] for g in groups)
    assert all(g["eps"] == 1e-10 for g in groups if g["kind"] == "adamw")


# -----------------------------------------------------------------------------
# Kinds

class SignDescent:
    """A kind of few lines: p -= lr (sign(g) + decay p)."""
    defaults = dict(decay=0.0)
    scheduled = ("decay",)

    def __init__(self, polar_dtype, compile_update):
        pass

    def step(self, group, state):
        for p in group["params"]:
            state[p]["step"] = state[p].get("step", 0) + 1
            p -= group["lr"] * (p.grad.sign() + group["decay"] * p)


def test_new_kind_is_one_row(monkeypatch):
    monkeypatch.setitem(KINDS, "sign", SignDescent)
    w = uniform((4, 5), "w").clone().requires_grad_()
    w.grad = uniform((4, 5), "g").clone()
    group = make_group("sign", [w], lr=0.2)
    optimizer = MuonAdamW([{**group, "initial_lr": 0.2}])
    apply_schedule(optimizer.param_groups[0], lrm=0.5, momentum=0.9, weight_decay=0.1, decay=0.3)
    optimizer.step()
    expected = uniform((4, 5), "w") - 0.1 * (uniform((4, 5), "g").sign() + 0.3 * uniform((4, 5), "w"))
    assert torch.equal(w.detach(), expected) and optimizer.state[w] == {"step": 1}


def test_matrices_are_stepped_by_the_kind_that_is_asked_for():
    """AdamW for the matrices: torch's own AdamW, at matrix_lr, on every matrix."""
    model = make()
    optimizer = setup_optimizer(model, **RATES, matrix_optimizer="adamw")
    groups = [group for group in optimizer.param_groups if group["lr"] == RATES["matrix_lr"]]
    muon = [group for group in setup_optimizer(make(), **RATES).param_groups if group["kind"] == "muon"]
    assert [len(group["params"]) for group in groups] == [len(group["params"]) for group in muon]
    assert {group["kind"] for group in optimizer.param_groups} == {"adamw"}
    p = groups[0]["params"][0]
    theirs = p.detach().clone().requires_grad_()
    reference = torch.optim.AdamW([theirs], lr=RATES["matrix_lr"], betas=(0.9, 0.95), eps=1e-10,
                                  weight_decay=RATES["weight_decay"])
    for i in range(3):
        for each in model.parameters():
            each.grad = uniform(tuple(each.shape), f"g{i}").to(each.dtype)
        theirs.grad = p.grad.clone()
        optimizer.step()
        reference.step()
    assert torch.allclose(p, theirs, rtol=1e-6, atol=1e-7)


def test_unknown_kind_is_refused_with_the_rows_there_are():
    with pytest.raises(ValueError, match=f"--kind=nonsense: there is no such row; the rows are {', '.join(KINDS)}"):
        make_group("nonsense", [], lr=0.1)
    with pytest.raises(ValueError, match="nonsense"):
        MuonAdamW([dict(kind="nonsense", params=[torch.zeros(3, requires_grad=True)], lr=0.1)])


def test_schedule_moves_the_rate_of_all_and_only_what_a_kind_schedules():
    optimizer = setup_optimizer(make(), **RATES)
    before = [dict(group) for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        apply_schedule(group, lrm=0.25, momentum=0.7, weight_decay=0.11)
    for group, old in zip(optimizer.param_groups, before):
        moved = dict(momentum=0.7, weight_decay=0.11) if group["kind"] == "muon" else {}
        assert group == {**old, "lr": 0.25 * old["initial_lr"], **moved}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_moves_weights_against_the_gradient_and_resumes_to_the_last_bit(kind):
    shape = (6, 4)

    def start():
        w = uniform(shape, "w").clone().requires_grad_()
        return w, MuonAdamW([make_group(kind, [w], lr=0.01)])

    def steps(w, optimizer, numbers):
        for number in numbers:
            w.grad = uniform(shape, "g") + 0.1 * uniform(shape, f"g{number}")
            optimizer.step()
        return w.detach().clone()
    w, optimizer = start()
    half = steps(w, optimizer, range(2))
    saved = copy.deepcopy(optimizer.state_dict())
    end = steps(w, optimizer, range(2, 4))
    assert end.isfinite().all() and ((uniform(shape, "w") - end) * uniform(shape, "g")).sum() > 0
    assert set(KINDS[kind].scheduled) <= set(optimizer.param_groups[0])
    again, resumed = start()
    with torch.no_grad():
        again.copy_(half)
    resumed.load_state_dict(saved)
    assert torch.equal(steps(again, resumed, range(2, 4)), end)


# -----------------------------------------------------------------------------
# AdamW

def adamw_groups(tensors):
    return [dict(kind="adamw", params=tensors[:2], lr=0.03, betas=(0.8, 0.96), eps=1e-10, weight_decay=0.1),
            dict(kind="adamw", params=[tensors[2]], lr=0.5, betas=(0.96, 0.995), eps=1e-10, weight_decay=0.0)]


def test_adamw_equals_torchs():
    shapes = (31, 7), (5,), (1,)
    ours, theirs = ([uniform(shape, f"w{i}").clone().requires_grad_() for i, shape in enumerate(shapes)]
                    for _ in range(2))
    optimizer = MuonAdamW(adamw_groups(ours))
    groups = [{k: v for k, v in group.items() if k != "kind"} for group in adamw_groups(theirs)]
    reference = torch.optim.AdamW(groups, fused=False, foreach=False)
    for step in range(12):
        for i, (a, b) in enumerate(zip(ours, theirs)):
            a.grad = 10.0 ** (-step) * uniform(a.shape, f"g{i} {step}")
            b.grad = a.grad.clone()
        for opt in (optimizer, reference):
            for group in opt.param_groups:
                group["lr"] *= 0.9
            opt.step()
        for a, b in zip(ours, theirs):
            assert torch.allclose(a, b, rtol=1e-5, atol=1e-6), step


def test_adamw_of_bfloat16_parameters_is_computed_in_float32_and_rounded_once():
    """One step from the same bfloat16 state: the result is the fp32 result rounded, not a chain of rounded
    operations."""
    w, g = uniform((500,), "w").bfloat16(), uniform((500,), "g").bfloat16()
    low, high = w.clone().requires_grad_(), w.float().requires_grad_()
    for p in (low, high):
        group = dict(kind="adamw", params=[p], lr=0.01, betas=(0.8, 0.995), eps=1e-10, weight_decay=0.01)
        p.grad = g.to(p.dtype)
        MuonAdamW([group]).step()
    assert low.dtype == torch.bfloat16
    # rounded once: at most half a unit of bfloat16 from the fp32 result, with a little room for a tie
    unit = 2.0 ** (high.detach().abs().log2().floor() - 7)
    assert ((low.detach().float() - high.detach()).abs() <= 0.51 * unit).all()


def test_gradients_are_left_as_they_were():
    """zero_grad(set_to_none) follows anyway, but a step that ruins gradients would make a logged norm a lie."""
    model = make()
    set_gradients(model, 0)
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    setup_optimizer(model, **RATES).step()
    assert all(torch.equal(p.grad, before[name]) for name, p in model.named_parameters())


# -----------------------------------------------------------------------------
# State

def steps(model, optimizer, numbers):
    for step in numbers:
        set_gradients(model, step)
        optimizer.step()
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_saved_and_loaded_goes_on_bit_identically(dtype, tmp_path):
    model = make(dtype)
    optimizer = setup_optimizer(model, polar_dtype=dtype, **RATES)
    steps(model, optimizer, range(3))
    torch.save((model.state_dict(), optimizer.state_dict()), tmp_path / "state.pt")
    expected = steps(model, optimizer, range(3, 6))
    again = make(dtype)
    resumed = setup_optimizer(again, polar_dtype=dtype, **RATES)
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    again.load_state_dict(weights)
    resumed.load_state_dict(state)
    for name, w in steps(again, resumed, range(3, 6)).items():
        assert torch.equal(w, expected[name]), name


def test_muons_state_is_stacked_under_the_first_matrix_of_its_shape():
    model = make()
    optimizer = setup_optimizer(model, **RATES)
    steps(model, optimizer, range(1))
    for group in optimizer.param_groups:
        first, *others = group["params"]
        if group["kind"] == "muon":
            k, (rows, cols) = len(group["params"]), first.shape
            factored = (k, rows, 1) if rows >= cols else (k, 1, cols)
            assert {name: tuple(t.shape) for name, t in optimizer.state[first].items()} == {
                "momentum_buffer": (k, rows, cols), "second_momentum_buffer": factored}
            assert not any(p in optimizer.state and optimizer.state[p] for p in others)
        else:
            for state in (optimizer.state[p] for p in group["params"]):
                assert set(state) == {"step", "exp_avg", "exp_avg_sq"} and state["step"] == 1
