import re

import pytest
import yaml

from model_cards import render


def test_rendered_texts_are_up_to_date() -> None:
    stale = [str(path) for path, text in render.render_all().items() if path.read_text() != text]
    assert stale == [], "run `make render`"


def test_card_metadata_states_the_measured_values() -> None:
    text = render.render_default_card()
    metadata = yaml.safe_load(text.split("---")[1])
    result = render._load("lgq_default")
    values = {m["type"]: m["value"] for m in metadata["model-index"][0]["results"][0]["metrics"]}
    assert values["psnr"] == pytest.approx(result["photographs"]["psnr"], abs=0.006)
    assert values["ssim"] == pytest.approx(result["photographs"]["ssim"], abs=6e-5)
    assert not re.search(r"\$\w", text)


def test_a_changed_number_changes_the_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    load = render._load

    def changed(name: str) -> dict:
        result = load(name)
        if "photographs" in result:
            result["photographs"]["psnr"] += 1
        if name == "tiny_cpu":
            result["validation"][-1]["psnr"] += 1
        if name == "generator_tiny_ar_cpu":
            result["validation"][-1]["bits_per_token"] += 1
        return result

    monkeypatch.setattr(render, "_load", changed)
    assert all(path.read_text() != text for path, text in render.render_all().items())


@pytest.mark.parametrize(("part", "key"), [("metrics", "recall"), ("protocol", "guidance_scale")])
def test_an_evaluation_that_changes_changes_the_page(part: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load, page = render._load, render.ROOT / "docs" / "generating.md"

    def changed(name: str) -> dict:
        result = load(name)
        if name == "generator_debian_ar_cpu_evaluation":
            result[part][key] += 0.5
        return result

    monkeypatch.setattr(render, "_load", changed)
    assert render.render_generating(page.read_text()) != page.read_text()


def test_readme_without_its_marker_is_refused() -> None:
    with pytest.raises(ValueError, match="exactly one part '<!-- rendered: quality -->', found 0"):
        render.render_readme("# nothing here")
