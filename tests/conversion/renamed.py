"""Our names to those of nets in taming's manner, for tests that rename a random net of any size."""

import re

Rules = list[tuple[str, str]]
COMMON: Rules = [
    (r"encoder\.stem\.", "encoder.conv_in."),
    (r"encoder\.to_emb\.", "encoder.conv_out."),
    (r"decoder\.from_emb\.", "decoder.conv_in."),
    (r"decoder\.out\.", "decoder.conv_out."),
    (r"^quantizer\.codebook$", "quantize.embedding.weight"),
    (r"encoder\.stages\.(\d+)\.blocks\.", r"encoder.down.\1.block."),
    (r"decoder\.stages\.(\d+)\.blocks\.", r"decoder.up.<\1>.block."),
    (r"\.shortcut\.", ".nin_shortcut."),
]


def their_name(ours: str, levels: int, rules: Rules) -> str:
    """The name by the rules, in their order; `<i>` in a template stands for levels - 1 - i."""
    for pattern, template in [*COMMON, *rules]:
        ours = re.sub(pattern, template, ours)
    return re.sub(r"<(\d+)>", lambda level: str(levels - 1 - int(level[1])), ours)
