"""
The configuration of a model, without torch: its sizes, the names of its layers, and which of upstream's extras it has.

GPTConfig has upstream's seven fields, written here, and a field for each option of nanochat/config.py that says
model=True. A checkpoint holds these fields: upstream's in "model_config", ours in "variant" where they differ from
their default. Old checkpoints must load, so a field never changes its name, its type or its meaning.
"""

from dataclasses import dataclass, field, fields, make_dataclass

from nanochat.config import FIELDS

# The keys of a checkpoint's "model_config": exactly upstream's.
UPSTREAM_KEYS = ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd", "window_pattern")


@dataclass
class Sizes:
    """Upstream's fields, and values derived from the fields."""
    n_layer: int = 12
    n_embd: int = 768
    n_head: int = 6
    n_kv_head: int = 6
    vocab_size: int = 32768
    sequence_len: int = 2048
    window_pattern: str = "SSSL"

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


# One declaration of an option serves the command line, the record of a run and the model.
_ours = [(name, o.type, field(default=o.default)) for name, o in FIELDS.items()
         if o.model and name not in UPSTREAM_KEYS]
GPTConfig = make_dataclass("GPTConfig", _ours, bases=(Sizes,), namespace={"__module__": __name__})
