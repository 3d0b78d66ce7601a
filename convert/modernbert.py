"""ModernBERT's config.json (arXiv:2412.13663).

Version 5 says in layer_types and rope_parameters what version 4 says in other fields, and neither minds that it is not
told: so config.json says both.
"""

from convert import table
from convert.family import Family, refusals
from cptjax.shape import FULL, SLIDING, ModernBertConfig

THETAS = {FULL: "global_rope_theta", SLIDING: "local_rope_theta"}
CLASSIFIES = ("head", "classifier")


def period(config: ModernBertConfig) -> int | None:
    """The n for which layer i is global when i % n == 0, all that version 4 can say of layers; None: there is none."""
    full = [i for i, kind in enumerate(config.layer_types) if kind == FULL]
    n = full[1] if len(full) > 1 else config.num_hidden_layers
    return n if full == list(range(0, config.num_hidden_layers, n)) else None


class ModernBert(Family[ModernBertConfig]):
    """ModernBERT, and its decoder."""

    shape = ModernBertConfig
    unsaid = frozenset({"causal_window_counts_self"})
    apart = frozenset({"layer_types", *THETAS.values()})
    anew = frozenset(
        {
            *("layer_types", "global_attn_every_n_layers"),
            *("rope_parameters", "global_rope_theta", "local_rope_theta", "rope_theta", "rope_scaling"),
        }
    )
    layers = "layers"
    scores = {
        table.ENCODER: {"lm": ("head", "decoder"), "tokens": CLASSIFIES, "spans": CLASSIFIES},
        table.DECODER: {"lm": ("lm_head", "decoder")},
    }

    def prepared(self, raw, architecture):
        """Without the fields that `fields_of_4` has set to None, for version 5 says them in others."""
        of_5 = raw.get("layer_types") and raw.get("rope_parameters")
        raw = {name: value for name, value in raw.items() if value is not None or not (of_5 and name in self.anew)}
        if "local_rope_theta" in raw and raw["local_rope_theta"] is None:  # transformers 4: as global
            raw["local_rope_theta"] = raw.get("global_rope_theta", ModernBertConfig.global_rope_theta)
        return raw

    def values(self, normal, architecture):
        """Layers, bases of rotary positions, and how a decoder counts."""
        with refusals():
            rope = {kind: dict(normal.rope_parameters[kind]) for kind in THETAS}
            thetas = {THETAS[kind]: rope[kind].pop("rope_theta") for kind in THETAS}
        for kind, rest in rope.items():
            if rest.pop("rope_type") != "default" or rest:
                said = normal.rope_parameters[kind]
                raise ValueError(f"rope of {kind} is {said}; only rope_type 'default' is known")
        counts_self = self.is_decoder(architecture)
        return {**thetas, "layer_types": tuple(normal.layer_types), "causal_window_counts_self": counts_self}

    def check(self, raw, config, architecture):
        """Raise ValueError where version 4 would read another model than `config`, which 5 reads."""
        said = {name: raw[name] for name in THETAS.values() if raw.get(name) is not None}
        wrong = [name for name, value in said.items() if value != getattr(config, name)]
        every = raw.get("global_attn_every_n_layers")
        if every is not None and not self.is_decoder(architecture):  # a decoder's layer_types are read by 4 too
            layers = tuple(SLIDING if i % every else FULL for i in range(config.num_hidden_layers))
            wrong += ["global_attn_every_n_layers"] if layers != config.layer_types else []
        if wrong:
            raise ValueError(
                f"{', '.join(wrong)} and layer_types or rope_parameters contradict each other: transformers 4 and 5 "
                "would read two models; keep what it was trained with"
            )

    def fields(self, config, architecture):
        """In the words of version 5."""
        rope = {kind: {"rope_type": "default", "rope_theta": getattr(config, name)} for kind, name in THETAS.items()}
        return {"layer_types": list(config.layer_types), "rope_parameters": rope}

    def fields_of_4(self, config, architecture):
        """They are None where version 4 cannot say it: it then stops, instead of building another model."""
        fields = {"global_attn_every_n_layers": period(config)}
        fields |= {name: getattr(config, name) for name in THETAS.values()}
        return dict.fromkeys(fields) if self.versions(config, architecture).startswith(">=5") else fields

    def versions(self, config, architecture):
        """Version 4 has one base for all layers of a decoder, and no layers without a period."""
        two_bases = config.global_rope_theta != config.local_rope_theta and SLIDING in config.layer_types
        if self.is_decoder(architecture):
            return ">=5" if two_bases else ">=4.54"  # 4 turns all layers by the global base
        if period(config) is None:
            return ">=5.1"  # 5.0 half reads layer_types
        first = ">=4.51" if architecture == "ModernBertForQuestionAnswering" else ">=4.48"
        return f"{first},!=4.54.*" if two_bases else first  # 4.54 turns all layers by one base
