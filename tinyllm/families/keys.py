"""Reading a `config.json` strictly: every key is used, known to change no number, or refused.

A key that is passed over can change every logit without a word (a window, a multiplier, a scaling
of positions). So a description asks `Keys` for what it understands, and `Keys.unread` says what
nobody asked for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from tinyllm.errors import ConfigError

T = TypeVar("T", int, float, bool, str)

# Keys that change no logit of a forward pass: training, initialisation, bookkeeping, generation
# settings (which are read from generation_config.json), and the sizes of heads that aren't run.
HARMLESS = re.compile(
    r"""^(
      _.* | .*dropout.* | .*pdrop | initializer.* | .*_token_id | .*_token_ids | .*_token_index |
      transformers(_|\.).* | torch_dtype | dtype | use_cache | cache_implementation | auto_map |
      model_type | architectures | output_.* | return_dict.* | id2label | label2id | num_labels |
      problem_type | task_specific_params | tokenizer_class | name_or_path | finetuning_task |
      pretraining_tp | tensor_parallel.* | gradient_checkpointing | use_return_dict | torchscript |
      is_encoder_decoder | is_decoder | is_llama_config | unsloth.* | router_aux_loss_coef |
      aux_loss.* | router_jitter_noise | summary_.* | classifier.* | chunk_size_feed_forward |
      use_flash_attn.* | flash_attn.* | attn_implementation | job_config |
      max_length | min_length | do_sample | temperature | top_k | top_p | typical_p | num_beams |
      repetition_penalty | length_penalty | no_repeat_ngram_size | early_stopping | pruned_heads |
      model_name | license | description | language | tags | base_model.* | bf16 | fp16 | fp32 |
      use_bfloat16 | neftune.* | n_ctx | sep_token | vocab_file | eod_token_id | im_.*_id |
      reorder_and_upcast_attn | begin_suppress_tokens | suppress_tokens |
      tie_encoder_decoder | forced_.* | remove_invalid_values | exponential_decay_length_penalty |
      diversity_penalty | encoder_no_repeat_ngram_size | bad_words_ids | prefix | z_loss.* |
      seq_length | max_new_tokens | num_return_sequences | num_beam_groups |
      activation_checkpoint.* | use_fused.* | fused_.* | resid_pdrop | has_no_defaults_at_init |
      ignore_keys_at_rope_validation | is_composition | use_mamba_kernels
    )$""",
    re.VERBOSE,
)


class Keys:
    """The keys of one `config.json`, with a family's defaults behind them.

    Args:
        raw: what the file says. A null stays a null: the family's fallback, not its default.
        defaults: what the reference's configuration class takes for a key that is left out.
    """

    def __init__(self, raw: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self._raw = {**defaults, **raw}
        self._given, self._defaults = raw, defaults
        self._asked: set[str] = set()

    def get(self, key: str, kind: type[T], default: T | None = None) -> T:
        """The value of a key that must have one; ConfigError names a missing or mistyped one."""
        self._asked.add(key)
        return value_of(self._raw, key, kind, default)

    def optional(self, key: str, kind: type[T]) -> T | None:
        """The value of a key, or None where it is null or left out."""
        self._asked.add(key)
        return typed(self._raw.get(key), key, kind)

    def any(self, key: str) -> Any:
        """The value as JSON has it."""
        self._asked.add(key)
        return self._raw.get(key)

    def any_or_default(self, key: str) -> Any:
        """The same where the reference takes its default for a null, too."""
        value = self.any(key)
        return self._defaults.get(key) if value is None else value

    def given(self, key: str) -> bool:
        """Whether the file itself has the key (a null counts)."""
        return key in self._given

    def strings(self, key: str, n: int) -> list[str] | None:
        """A list of n words, or None."""
        value = self.any(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            raise ConfigError(f"{key} must be a list of words, not {value!r}")
        if len(value) != n:
            raise ConfigError(f"{key} has {len(value)} entries for {n} layers")
        return value

    def integers(self, key: str) -> list[int] | None:
        """A list of whole numbers, or None."""
        value = self.any(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(type(item) is int for item in value):
            raise ConfigError(f"{key} must be a list of whole numbers, not {value!r}")
        return value

    def token_ids(self, key: str) -> tuple[int, ...]:
        """One token id or several."""
        value = self.any(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
            raise ConfigError(f"{key} must be a token id or a list of them, not {value!r}")
        return tuple(ids)

    def must_be(self, key: str, *allowed: Any) -> None:
        """Refuse a value that would need a part that isn't here; null and absent are fine."""
        value = self.any(key)
        if value is not None and not any(value == a and type(value) is type(a) for a in allowed):
            words = " or ".join(repr(a) for a in allowed)
            raise ConfigError(f"{key} is {value!r}; tinyllm runs {words} for this family")

    def pass_over(self, *keys: str) -> None:
        """Keys that the reference reads and that change no number in this family."""
        self._asked.update(keys)

    def unread(self) -> list[str]:
        """Keys that nobody asked for and that might change the numbers, in the file's order.

        A null, a false or an empty value turns nothing on.
        """
        return [
            key
            for key, value in self._given.items()
            if key not in self._asked
            and not HARMLESS.match(key)
            and value not in (None, False, "", [], {})
        ]


def value_of(raw: Mapping[str, Any], key: str, kind: type[T], default: T | None = None) -> T:
    """The value of a key, or the default where it is null or left out; ConfigError names it."""
    value = typed(raw.get(key), key, kind)
    if value is not None:
        return value
    if default is None:
        raise ConfigError(f"{key} is missing")
    return default


def typed(value: Any, key: str, kind: type[T]) -> T | None:
    """The value as `kind`; ConfigError if it is of another type. A null is None."""
    if value is None:
        return None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 1 << 1023 else math.inf
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{key} must be {kind.__name__}, not {value!r}")
    return value
