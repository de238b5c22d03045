"""
What a model is, without torch: sizes, the names of its layers, and which of upstream's extras it has.

A checkpoint holds these fields: upstream's seven in "model_config", ours in "variant" where they differ from their
default. So a field keeps its name, its type and its meaning once it is there.
"""

from dataclasses import dataclass, fields

# What a checkpoint's "model_config" holds, exactly.
UPSTREAM_KEYS = ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd", "window_pattern")


@dataclass
class GPTConfig:
    # size: UPSTREAM_KEYS
    n_layer: int = 12
    n_embd: int = 768
    n_head: int = 6
    n_kv_head: int = 6
    vocab_size: int = 32768
    sequence_len: int = 2048
    window_pattern: str = "SSSL"
    # ours: what a checkpoint's "variant" holds where it is not the default
    mixer: str = "attention"  # names separated by commas, tiled over the layers
    mlp: str = "relu_squared"
    residual: str = "plain"
    symplectic_gate_mix: float = 0.15
    symplectic_gate_eps: float = 1e-6
    symplectic_gate_layers: str = "all"
    symplectic_gate_ramp_start: int = 0
    symplectic_gate_ramp_steps: int = 0
    value_embeds: bool = True
    smear: bool = True
    lambdas: bool = True  # per-layer scalars on the residual stream and on x0
    backout: bool = True
    qk_norm: bool = True
    logit_softcap: float = 15.0  # 0 = off
    rope_base: float = 100000.0

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    def mixer_of(self, layer_idx: int) -> str:
        """Name of the mixer of a layer. The names of `mixer` repeat over the layers.

        >>> [GPTConfig(mixer="linear,linear,attention").mixer_of(i) for i in range(4)]
        ['linear', 'linear', 'attention', 'linear']
        """
        names = self.mixer.split(",")
        return names[layer_idx % len(names)].strip()

    def has_ve(self, layer_idx: int) -> bool:
        """Value embeddings sit on every other layer, the last included."""
        return self.value_embeds and layer_idx % 2 == (self.n_layer - 1) % 2

    def window(self, layer_idx: int) -> int:
        """How many tokens back a layer sees. S is a quarter of the context, rounded up to whole tiles of 128."""
        letter = self.window_pattern.upper()[layer_idx % len(self.window_pattern)]
        if letter == "L" or layer_idx == self.n_layer - 1:
            return self.sequence_len
        return -(-self.sequence_len // 4 // 128) * 128

    def upstream_dict(self) -> dict:
        return {name: getattr(self, name) for name in UPSTREAM_KEYS}

    def variant_dict(self) -> dict:
        """Our fields that are not at their default: empty where the checkpoint is upstream's model."""
        return {f.name: getattr(self, f.name) for f in fields(self)
                if f.name not in UPSTREAM_KEYS and getattr(self, f.name) != f.default}
