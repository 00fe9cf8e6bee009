"""config.json as the hub has it: every spelling that is read, everything that is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from chatbench.errors import IntegrityError, UsageError
from chatbench.model.architectures import ARCHITECTURES
from chatbench.model.architectures.activations import hub_activation, read_activation
from chatbench.model.layers import ACTIVATIONS
from chatbench.model.transformer import GPT, ModelConfig, RopeScaling

Family = Callable[..., ModelConfig]
NAMES = sorted(ARCHITECTURES)
ROTARY = [name for name in NAMES if name != "gpt2"]

LLAMA_3_2 = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "head_dim": 64,
    "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
    "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": False,
    "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16,
    "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3",
    },
    "rope_theta": 500000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0.dev0", "use_cache": True, "vocab_size": 128256,
}  # fmt: skip
SMOL = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576,
    "initializer_range": 0.041666666666666664, "intermediate_size": 1536, "is_llama_config": True,
    "max_position_embeddings": 8192, "mlp_bias": False, "model_type": "llama",
    "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3,
    "pad_token_id": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": False,
    "rope_scaling": None, "rope_theta": 100000, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
    "transformers_version": "4.42.3", "use_cache": True, "vocab_size": 49152,
}  # fmt: skip
QWEN_2_5 = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02,
    "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 21,
    "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "sliding_window": 32768, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "transformers_version": "4.43.1", "use_cache": True, "use_mrope": False,
    "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
MISTRAL_0_3 = {
    "architectures": ["MistralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1,
    "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral",
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": None,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "vocab_size": 32768,
}  # fmt: skip
GPT2 = {
    "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
    "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12,
    "n_layer": 12, "n_positions": 1024, "resid_pdrop": 0.1, "summary_activation": None,
    "summary_first_dropout": 0.1, "summary_proj_to_labels": True, "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 50257,
}  # fmt: skip
PARAMETERS = [
    (LLAMA_3_2, 1_235_814_400), (SMOL, 134_515_008), (QWEN_2_5, 494_032_768),
    (MISTRAL_0_3, 7_248_023_552), (GPT2, 124_439_808),
]  # fmt: skip
EACH_FAMILY = pytest.mark.parametrize(
    "raw", [LLAMA_3_2, QWEN_2_5, MISTRAL_0_3, GPT2], ids=lambda r: r["model_type"]
)


def read(raw: dict[str, Any]) -> ModelConfig:
    return ARCHITECTURES[raw["model_type"]].read(json.loads(json.dumps(raw))).check()


def refused(raw: dict[str, Any], *words: str) -> None:
    with pytest.raises(IntegrityError) as caught:
        read(raw)
    for word in (*words, "config.json"):
        assert word in str(caught.value)


@pytest.mark.parametrize(("raw", "count"), PARAMETERS, ids=lambda v: str(v)[-16:-2])
def test_published_configs_have_the_published_number_of_parameters(
    raw: dict[str, Any], count: int
) -> None:
    with torch.device("meta"):
        assert GPT(read(raw)).parameter_count() == count


def test_numbers_of_published_configs_arrive() -> None:
    found = read(LLAMA_3_2)
    assert (found.context, found.n_kv_heads, found.rope_theta) == (131_072, 8, 500_000.0)
    assert found.rope == RopeScaling(
        "llama3", 32.0, 8192, low_freq_factor=1.0, high_freq_factor=4.0
    )
    assert read(SMOL).head_dim == 64
    assert read(GPT2).ffn_size == 3072


# ---- spellings


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "llama3"])
@pytest.mark.parametrize("name", ROTARY)
def test_both_spellings_of_rotary_positions_say_the_same(
    random_family: Family, random_rope: Callable[[str], RopeScaling], name: str, kind: str
) -> None:
    config = random_family(name, rope=random_rope(kind))
    raw = ARCHITECTURES[name].write(config)
    new = {key: value for key, value in raw.items() if key not in ("rope_theta", "rope_scaling")}
    old = {key: value for key, value in raw.items() if key != "rope_parameters"}
    oldest = {**old, "rope_scaling": dict(old["rope_scaling"])}
    oldest["rope_scaling"]["type"] = oldest["rope_scaling"].pop("rope_type")
    for spelling in (new, old, oldest):
        assert read(spelling) == config


def test_what_a_config_leaves_out_is_what_transformers_takes() -> None:
    transformers = pytest.importorskip("transformers")
    for raw in (LLAMA_3_2, SMOL, QWEN_2_5, MISTRAL_0_3):
        optional = (
            "num_key_value_heads", "rms_norm_eps", "hidden_act", "rope_theta", "rope_scaling",
            "tie_word_embeddings", "attention_bias", "mlp_bias", "head_dim",
        )  # fmt: skip
        bare = {key: value for key, value in raw.items() if key not in optional}
        bare["num_attention_heads"], bare["hidden_size"] = 32, 2048
        theirs = transformers.AutoConfig.for_model(**bare)
        ours = read(bare)
        assert ours.n_kv_heads == theirs.num_key_value_heads
        assert ours.norm_eps == theirs.rms_norm_eps
        assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
        assert ours.tie_embeddings == theirs.tie_word_embeddings
        assert ours.head_dim == getattr(theirs, "head_dim", 64)
    qwen3 = {**QWEN_2_5, "model_type": "qwen3"}
    assert read(qwen3).head_dim == transformers.AutoConfig.for_model(**qwen3).head_dim
    bare = {key: GPT2[key] for key in ("model_type", "vocab_size", "n_embd", "n_layer", "n_head",
                                       "n_positions")}  # fmt: skip
    theirs = transformers.AutoConfig.for_model(**bare)
    assert read(bare).tie_embeddings == theirs.tie_word_embeddings
    assert read(bare).norm_eps == theirs.layer_norm_epsilon
    assert read(bare).activation == "gelu_tanh"


def test_yarn_without_a_factor_takes_the_ratio_of_contexts() -> None:
    rope = {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 8192}
    found = read({**QWEN_2_5, "rope_scaling": rope}).rope
    assert found is not None
    assert found.factor == 4.0


def test_every_hub_name_of_an_activation_computes_what_transformers_does(
    rng: random.Random,
) -> None:
    activations = pytest.importorskip("transformers.activations")
    x = torch.tensor([rng.uniform(-6, 6) for _ in range(200)], dtype=torch.float64)
    names = (
        "silu", "swish", "gelu", "gelu_python", "gelu_new", "gelu_fast", "gelu_accurate",
        "gelu_pytorch_tanh", "gelu_python_tanh", "quick_gelu", "relu", "relu2", "tanh",
    )  # fmt: skip
    for name in names:
        ours = read_activation({"act": name}, "act", "silu")
        wanted = activations.ACT2FN[name](x)
        torch.testing.assert_close(ACTIVATIONS[ours](x), wanted, atol=1e-7, rtol=1e-6)
        assert read_activation({"act": hub_activation(ours)}, "act", "silu") == ours
    assert set(ACTIVATIONS) == {read_activation({"act": n}, "act", "silu") for n in names}


# ---- refusals


@pytest.mark.parametrize(
    "change",
    [
        {"num_experts": 8}, {"num_local_experts": 8}, {"n_routed_experts": 64},
        {"num_experts_per_tok": 2}, {"moe_intermediate_size": 512}, {"decoder_sparse_step": 1},
        {"router_aux_loss_coef": 0.001}, {"vision_config": {"depth": 32}},
        {"audio_config": {"d": 1}}, {"num_kv_shared_layers": 4},
        {"final_logit_softcapping": 30.0}, {"attn_logit_softcapping": 50.0}, {"alibi": True},
        {"position_embedding_type": "alibi"}, {"embedding_multiplier": 12.0},
        {"residual_multiplier": 0.2}, {"logits_scaling": 8.0}, {"scale_emb": 12},
        {"scale_depth": 1.4}, {"add_cross_attention": True}, {"is_encoder_decoder": True},
        {"no_rope_layers": [1, 0]}, {"rope_interleaved": True}, {"use_qk_norm": True},
        {"query_pre_attn_scalar": 256}, {"attention_chunk_size": 8192}, {"use_mrope": True},
        {"use_parallel_residual": True}, {"num_nextn_predict_layers": 1},
        {"pruned_heads": {"0": [1]}},
        {"quantization_config": {"quant_method": "gptq"}}, {"per_layer_config": {"0": {}}},
        {"lm_head_bias": True}, {"norm_type": "layernorm"}, {"mamba_d_conv": 4},
    ],
    ids=lambda c: next(iter(c)),
)  # fmt: skip
@EACH_FAMILY
def test_what_changes_the_computation_is_refused_by_name(
    raw: dict[str, Any], change: dict[str, Any]
) -> None:
    refused({**raw, **change}, list(change)[-1], "does not compute")
    # The same key asks for nothing when it is false, empty, zero or null.
    for nothing in (None, False, 0, {}):
        assert read({**raw, **dict.fromkeys(change, nothing)}) == read(raw)


@EACH_FAMILY
def test_keys_known_to_be_harmless_do_not_stand_in_the_way(raw: dict[str, Any]) -> None:
    harmless = {
        "_attn_implementation_autoset": True, "_flash_attn_2_enabled": True, "mask_token_id": 7,
        "attention_probs_dropout_prob": 0.1, "output_attentions": True, "unsloth_fixed": True,
        "model_parallel_size": 2, "auto_map": {"AutoModel": "code.Model"}, "dtype": "bfloat16",
        "notes": "茶叶店", "max_window_layers": 28,
    }  # fmt: skip
    assert read({**raw, **harmless}) == read(raw)


@pytest.mark.parametrize(
    "change",
    [
        {"scale_attn_by_inverse_layer_idx": True}, {"scale_attn_weights": False},
        {"add_cross_attention": True}, {"activation_function": "mish"},
    ],
    ids=lambda c: next(iter(c)),
)  # fmt: skip
def test_gpt2_variants_are_refused_by_name(change: dict[str, Any]) -> None:
    key, value = next(iter(change.items()))
    refused({**GPT2, **change}, value if isinstance(value, str) else key)
    assert read({**GPT2, "reorder_and_upcast_attn": True}) == read(GPT2)


@pytest.mark.parametrize(
    ("name", "other"),
    [("n_embd", "hidden_size"), ("n_head", "num_attention_heads"), ("n_layer", "num_hidden_layers"),
     ("n_positions", "max_position_embeddings")],
)  # fmt: skip
def test_two_names_of_one_number_must_agree(name: str, other: str) -> None:
    for same in (GPT2[name], None):
        assert read({**GPT2, other: same}) == read(GPT2)
        assert read({**GPT2, name: same, other: GPT2[name]}) == read(GPT2)
    refused({**GPT2, other: 3}, f"{name} {GPT2[name]}", f"{other} 3")


@pytest.mark.parametrize(
    ("rope", "word"),
    [
        ({"rope_type": "longrope", "factor": 4.0}, "longrope"),
        ({"type": "su", "factor": 4.0}, "su"),
        ({"rope_type": "proportional", "factor": 4.0}, "proportional"),
        ({"type": "mrope", "mrope_section": [16, 24, 24]}, "mrope"),
        ({"rope_type": "default", "mrope_section": [16, 24, 24]}, "mrope_section"),
        ({"rope_type": "linear"}, "factor"),
        ({"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}, "partial_rotary"),
        ({"full_attention": {"rope_type": "default"}}, "full_attention"),
        ("linear", "linear"),
    ],
)
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_rotary_positions_of_other_kinds_are_refused(key: str, rope: Any, word: str) -> None:
    raw = {name: value for name, value in QWEN_2_5.items() if not name.startswith("rope")}
    refused({**raw, key: rope}, word)
    refused({**raw, "partial_rotary_factor": 0.25}, "partial_rotary_factor 0.25")
    assert read({**QWEN_2_5, "partial_rotary_factor": 1.0}) == read(QWEN_2_5)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"kind": "linear", "factor": float("nan")}, "factor"),
        ({"kind": "dynamic", "factor": 0.0}, "factor"),
        ({"kind": "yarn", "factor": 2.0}, "original context"),
        ({"kind": "yarn", "factor": 2.0, "original_context": 8, "beta_fast": -1.0}, "beta_fast"),
        ({"kind": "llama3", "factor": 2.0, "original_context": 8}, "low_freq_factor"),
        ({"kind": "llama3", "factor": 2.0, "original_context": 8, "low_freq_factor": 4.0,
          "high_freq_factor": 4.0}, "low_freq_factor"),
    ],
)  # fmt: skip
def test_scalings_that_cannot_be_meant_are_named(
    random_family: Family, changes: dict[str, Any], word: str
) -> None:
    with pytest.raises(UsageError, match=word):
        random_family("llama", rope=RopeScaling(**changes))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"rope_theta": float("inf")}, "rope_theta"), ({"rope_theta": 1.0}, "rope_theta"),
        ({"norm_eps": float("nan")}, "norm_eps"), ({"head_dim": 7}, "head_dim"),
        ({"head_dim": 2, "rope": RopeScaling("dynamic", 2.0)}, "head_dim"),
        ({"context": 0}, "context"),
    ],
)  # fmt: skip
def test_numbers_that_do_not_fit_together_are_named(
    random_family: Family, changes: dict[str, Any], word: str
) -> None:
    with pytest.raises(UsageError, match=word):
        random_family("llama", **changes)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_number_is_named(random_family: Family, name: str) -> None:
    raw = ARCHITECTURES[name].write(random_family(name))
    needed = ("vocab_size", "n_embd", "n_layer", "n_head", "n_positions", "hidden_size",
              "num_hidden_layers", "num_attention_heads", "intermediate_size",
              "max_position_embeddings")  # fmt: skip
    for key in raw.keys() & set(needed):
        refused({k: v for k, v in raw.items() if k != key}, key, "does not say")


# ---- windows


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_layers_with_a_window_are_refused(random_family: Family, name: str) -> None:
    raw = ARCHITECTURES[name].write(random_family(name))
    refused({**raw, "use_sliding_window": True}, "use_sliding_window")
    mixed = {**raw, "layer_types": ["full_attention", "sliding_attention"]}
    refused(mixed, "layer_types", "sliding_attention")
    whole = {**raw, "layer_types": ["full_attention"]}
    assert read(whole) == read(raw)
    if name != "llama":
        assert read({**whole, "sliding_window": 4096}) == read(raw)


def test_a_mistral_window_bounds_the_context_so_that_it_hides_nothing() -> None:
    whole = read(MISTRAL_0_3)
    for window in (32768, 40000):
        assert read({**MISTRAL_0_3, "sliding_window": window}) == whole
    found = read({**MISTRAL_0_3, "sliding_window": 32767})
    assert found == whole._replace(context=32767)
    # What is written then has no window, and the shorter context.
    written = ARCHITECTURES["mistral"].write(found)
    assert (written["max_position_embeddings"], written["sliding_window"]) == (32767, None)
    # Silence means 4096 there.
    silent = {key: value for key, value in MISTRAL_0_3.items() if key != "sliding_window"}
    assert read(silent).context == 4096
    assert read({**silent, "max_position_embeddings": 512}).context == 512
    refused({**MISTRAL_0_3, "sliding_window": 0}, "sliding_window 0")


def test_a_window_leaves_scaled_positions_as_they_were() -> None:
    for rope in (
        {"type": "yarn", "original_max_position_embeddings": 8192, "factor": None},
        {"type": "yarn", "factor": 4.0},
    ):
        wide = read({**MISTRAL_0_3, "rope_scaling": rope})
        narrow = read({**MISTRAL_0_3, "rope_scaling": rope, "sliding_window": 4096})
        assert narrow == wide._replace(context=4096)
        assert read(ARCHITECTURES["mistral"].write(narrow)) == narrow


def test_a_second_name_of_the_base_of_positions_must_agree() -> None:
    assert read({**QWEN_2_5, "rotary_emb_base": 1000000}) == read(QWEN_2_5)
    refused({**QWEN_2_5, "rotary_emb_base": 10000}, "rotary_emb_base 10000", "rope_theta")


@torch.no_grad()
def test_a_mistral_window_as_long_as_the_text_changes_nothing_in_transformers(
    random_family: Family, rng: random.Random
) -> None:
    transformers = pytest.importorskip("transformers")
    config = random_family("mistral", context=40)
    raw = ARCHITECTURES["mistral"].write(config)
    logits = []
    for window in (None, 40, 39):
        torch.manual_seed(3)
        twin = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(**{**raw, "sliding_window": window}),
            attn_implementation="eager",
        )
        logits.append(twin.eval()(torch.arange(40)[None]).logits)
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])
