"""config.json of well-known models as published: what is computed, odd keys included, and what not.

Each entry of `OPENED` has the published number of parameters, by which a wrong reading shows.
"""

from __future__ import annotations

from typing import Any

Raw = dict[str, Any]


def _llama(
    width: int, ffn: int, layers: int, heads: int, kv: int, context: int, **rest: Any
) -> Raw:  # fmt: skip
    return {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": width,
        "initializer_range": 0.02, "intermediate_size": ffn, "max_position_embeddings": context,
        "model_type": "llama", "num_attention_heads": heads, "num_hidden_layers": layers,
        "num_key_value_heads": kv, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_scaling": None, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "transformers_version": "4.40.0", "use_cache": True, "vocab_size": 32000, **rest,
    }  # fmt: skip


def _llama3(width: int, ffn: int, layers: int, heads: int, factor: float, **rest: Any) -> Raw:
    stretched = {
        "factor": factor, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3",
    }  # fmt: skip
    return _llama(width, ffn, layers, heads, 8, 131072, vocab_size=128256, rope_theta=500000.0,
                  rope_scaling=stretched, mlp_bias=False, bos_token_id=128000,
                  eos_token_id=[128001, 128008, 128009], **rest)  # fmt: skip


def _mistral(**rest: Any) -> Raw:
    return {
        "architectures": ["MistralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1,
        "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
        "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral",
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": None,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.36.0",
        "use_cache": True, "vocab_size": 32000, **rest,
    }  # fmt: skip


def _qwen2(width: int, ffn: int, layers: int, heads: int, kv: int, **rest: Any) -> Raw:
    return {
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
        "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": width,
        "initializer_range": 0.02, "intermediate_size": ffn, "max_position_embeddings": 32768,
        "max_window_layers": 21, "model_type": "qwen2", "num_attention_heads": heads,
        "num_hidden_layers": layers, "num_key_value_heads": kv, "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "transformers_version": "4.43.1", "use_cache": True,
        "use_sliding_window": False, "vocab_size": 152064, **rest,
    }  # fmt: skip


def _qwen3(width: int, ffn: int, layers: int, heads: int, **rest: Any) -> Raw:
    return _qwen2(width, ffn, layers, heads, 8, **{
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "head_dim": 128,
        "max_position_embeddings": 40960, "max_window_layers": layers, "model_type": "qwen3",
        "rope_scaling": None, "sliding_window": None, "transformers_version": "4.51.0",
        "vocab_size": 151936, **rest,
    })  # fmt: skip


def _gpt2(width: int, layers: int, heads: int, **rest: Any) -> Raw:
    return {
        "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1, "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256,
        "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "gpt2",
        "n_ctx": 1024, "n_embd": width, "n_head": heads, "n_layer": layers, "n_positions": 1024,
        "resid_pdrop": 0.1, "summary_activation": None, "summary_first_dropout": 0.1,
        "summary_proj_to_labels": True, "summary_type": "cls_index", "summary_use_proj": True,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        "vocab_size": 50257, **rest,
    }  # fmt: skip


_LABELS = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "_num_labels": 1}
_WEB = {"transformers.js_config": {"dtype": "q4", "kv_cache_dtype": {"q4f16": "float16"}}}
_SMOL = {"is_llama_config": True, "rope_interleaved": False, "mlp_bias": False, "vocab_size": 49152,
         "pad_token_id": 2, "tie_word_embeddings": True}  # fmt: skip
_OLD_QWEN = {"rotary_emb_base": 1000000, "seq_length": 65536, "rope_theta": 1000000}

OPENED: dict[str, tuple[Raw, int]] = {
    "Llama-2-7b-hf": (_llama(4096, 11008, 32, 32, 32, 4096), 6_738_415_616),
    "Llama-2-70b-hf": (_llama(8192, 28672, 80, 64, 8, 4096), 68_976_648_192),
    "CodeLlama-7b-hf": (
        _llama(4096, 11008, 32, 32, 32, 16384, rope_theta=1000000, vocab_size=32016),
        6_738_546_688,
    ),
    "vicuna-7b-v1.5-16k": (
        _llama(4096, 11008, 32, 32, 32, 4096, max_sequence_length=16384, pad_token_id=0,
               rope_scaling={"factor": 4.0, "type": "linear"}, _name_or_path="vicuna"),
        6_738_415_616,
    ),
    "open_llama_3b": (
        _llama(3200, 8640, 26, 32, 32, 2048, rms_norm_eps=1e-06, head_dim=None), 3_426_473_600,
    ),
    "deepseek-coder-1.3b": (
        _llama(2048, 5504, 24, 16, 16, 16384, rope_theta=100000, vocab_size=32256,
               rope_scaling={"type": "linear", "factor": 4.0}),
        1_346_471_936,
    ),
    "TinyLlama-1.1B-Chat": (_llama(2048, 5632, 22, 32, 4, 2048), 1_100_048_384),
    "Yi-6B-200K": (
        _llama(4096, 11008, 32, 32, 4, 200000, vocab_size=64000, rope_theta=5000000,
               pad_token_id=0),
        6_061_035_520,
    ),
    "SmolLM-360M": (
        _llama(960, 2560, 32, 15, 5, 2048, rope_theta=10000, **_SMOL), 361_821_120,
    ),
    "SmolLM2-1.7B-Instruct": (
        _llama(2048, 8192, 24, 32, 32, 8192, rope_theta=130000, **_SMOL, **_WEB), 1_711_376_384,
    ),
    "Meta-Llama-3-8B": (
        _llama(4096, 14336, 32, 32, 8, 8192, vocab_size=128256, rope_theta=500000.0),
        8_030_261_248,
    ),
    "Llama-3.1-8B": (_llama3(4096, 14336, 32, 32, 8.0), 8_030_261_248),
    "Llama-3.3-70B": (_llama3(8192, 28672, 80, 64, 8.0), 70_553_706_496),
    "Llama-3.2-3B-unsloth": (
        _llama3(3072, 8192, 28, 24, 32.0, tie_word_embeddings=True, head_dim=128,
                unsloth_fixed=True, unsloth_version="2024.9", quantization_config=None),
        3_212_749_824,
    ),
    "DeepSeek-R1-Distill-Llama-8B": (_llama3(4096, 14336, 32, 32, 8.0), 8_030_261_248),
    "Mistral-7B-v0.1": (
        _mistral(sliding_window=4096, rope_theta=10000.0), 7_241_732_096,
    ),
    "zephyr-7b-beta": (
        _mistral(sliding_window=4096, rope_theta=10000.0, pad_token_id=2, use_cache=True),
        7_241_732_096,
    ),
    "Mistral-7B-Instruct-v0.2": (_mistral(), 7_241_732_096),
    "Mistral-7B-v0.3": (_mistral(vocab_size=32768), 7_248_023_552),
    "Mistral-Nemo": (
        _mistral(hidden_size=5120, num_hidden_layers=40, head_dim=128, vocab_size=131072,
                 max_position_embeddings=1024000),
        12_247_782_400,
    ),
    "Ministral-8B-Instruct": (
        _mistral(intermediate_size=12288, num_hidden_layers=36, head_dim=128, vocab_size=131072,
                 sliding_window=32768, rope_theta=100000000.0),
        8_019_808_256,
    ),
    "Qwen1.5-0.5B": (
        _qwen2(1024, 2816, 24, 16, 16, vocab_size=151936, tie_word_embeddings=True), 463_987_712,
    ),
    "CodeQwen1.5-7B": (
        _qwen2(4096, 13440, 32, 32, 4, vocab_size=92416, sliding_window=65536,
               max_position_embeddings=65536, **_OLD_QWEN),
        7_250_284_544,
    ),
    "Qwen2-1.5B": (
        _qwen2(1536, 8960, 28, 12, 2, vocab_size=151936, tie_word_embeddings=True), 1_543_714_304,
    ),
    "Qwen2.5-0.5B": (
        _qwen2(896, 4864, 24, 14, 2, vocab_size=151936, tie_word_embeddings=True,
               use_mrope=False),
        494_032_768,
    ),
    "Qwen2.5-3B": (
        _qwen2(2048, 11008, 36, 16, 2, vocab_size=151936, tie_word_embeddings=True),
        3_085_938_688,
    ),
    "Qwen2.5-Coder-7B": (
        _qwen2(3584, 18944, 28, 28, 4, rope_scaling={
            "factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}),
        7_615_616_512,
    ),
    "Qwen2.5-Math-7B": (
        _qwen2(3584, 18944, 28, 28, 4, rope_theta=10000, sliding_window=4096,
               max_position_embeddings=4096, use_mrope=False),
        7_615_616_512,
    ),
    "Qwen2.5-14B": (_qwen2(5120, 13824, 48, 40, 8, rms_norm_eps=1e-05), 14_770_033_664),
    "Qwen2.5-32B": (_qwen2(5120, 27648, 64, 40, 8, rms_norm_eps=1e-05), 32_763_876_352),
    "Qwen2.5-72B": (_qwen2(8192, 29568, 80, 64, 8, rms_norm_eps=1e-05), 72_706_203_648),
    "DeepSeek-R1-Distill-Qwen-1.5B": (
        _qwen2(1536, 8960, 28, 12, 2, vocab_size=151936, rope_theta=10000, sliding_window=4096,
               max_position_embeddings=131072, use_mrope=False),
        1_777_088_000,
    ),
    "Qwen3-0.6B": (_qwen3(1024, 3072, 28, 16, tie_word_embeddings=True), 596_049_920),
    "Qwen3-1.7B-Base": (
        _qwen3(2048, 6144, 28, 16, tie_word_embeddings=True, max_position_embeddings=32768),
        1_720_574_976,
    ),
    "Qwen3-4B": (_qwen3(2560, 9728, 36, 32, tie_word_embeddings=True), 4_022_468_096),
    "Qwen3-8B": (_qwen3(4096, 12288, 36, 32), 8_190_735_360),
    "Qwen3-14B": (_qwen3(5120, 17408, 40, 40), 14_768_307_200),
    "Qwen3-32B": (
        _qwen3(5120, 25600, 64, 64, layer_types=["full_attention"] * 64, dtype="bfloat16"),
        32_762_123_264,
    ),
    "gpt2": (_gpt2(768, 12, 12), 124_439_808),
    "gpt2-medium": (
        _gpt2(1024, 24, 16, n_special=0, predict_special_tokens=True), 354_823_168,
    ),
    "gpt2-large": (_gpt2(1280, 36, 20, n_inner=None), 774_030_080),
    "gpt2-xl": (_gpt2(1600, 48, 25, output_past=True), 1_557_611_200),
    "distilgpt2": (_gpt2(768, 6, 12, **_LABELS), 81_912_576),
    "DialoGPT-medium": (
        _gpt2(1024, 24, 16, task_specific_params={"conversational": {"max_length": 1000}}),
        354_823_168,
    ),
}  # fmt: skip

_MOE = {"num_experts": 60, "num_experts_per_tok": 4, "moe_intermediate_size": 1408}

# A folder's config.json, and a word of the answer.
REFUSED: dict[str, tuple[Raw, str]] = {
    "Mixtral-8x7B": ({**_mistral(), "model_type": "mixtral", "num_local_experts": 8}, "mixtral"),
    "Qwen1.5-MoE": ({**_qwen2(2048, 5632, 24, 16, 16), "model_type": "qwen2_moe", **_MOE},
                    "qwen2_moe"),
    "Qwen3-30B-A3B": ({**_qwen3(2048, 6144, 48, 32), "model_type": "qwen3_moe", **_MOE},
                      "qwen3_moe"),
    "SmolLM3-3B": ({**_llama(2048, 11008, 36, 16, 4, 65536), "model_type": "smollm3",
                    "no_rope_layers": [1, 1, 1, 0] * 9, "no_rope_layer_interval": 4}, "smollm3"),
    "Llama-4-Scout": ({"model_type": "llama4", "text_config": {"num_local_experts": 16}},
                      "llama4"),
    "Llama-3.2-11B-Vision": ({"model_type": "mllama", "vision_config": {}}, "mllama"),
    "Qwen2.5-VL": ({**_qwen2(2048, 11008, 36, 16, 2), "model_type": "qwen2_5_vl"}, "qwen2_5_vl"),
    "gemma-2b": ({**_llama(2048, 16384, 18, 8, 1, 8192), "model_type": "gemma"}, "gemma"),
    "phi-2": ({"model_type": "phi", "partial_rotary_factor": 0.4}, "phi"),
    "pythia-160m": ({"model_type": "gpt_neox", "rotary_pct": 0.25}, "gpt_neox"),
    "Baichuan2-7B": ({"model_type": "baichuan", "auto_map": {"AutoConfig": "c.C"}},
                     "trust_remote_code"),
    "Qwen-7B": ({"model_type": "qwen", "auto_map": {"AutoConfig": "c.C"}}, "trust_remote_code"),
    "Qwen2.5-7B-Instruct-1M": (
        _qwen2(3584, 18944, 28, 28, 4, dual_chunk_attention_config={"chunk_size": 262144}),
        "dual_chunk_attention_config",
    ),
    "Llama-3.1-8B-GPTQ": (
        _llama3(4096, 14336, 32, 32, 8.0, quantization_config={"quant_method": "gptq"}), "gptq",
    ),
    "a Llama with interleaved pairs": (_llama(64, 64, 1, 4, 4, 64, rope_interleaved=True),
                                       "rope_interleaved"),
}  # fmt: skip
