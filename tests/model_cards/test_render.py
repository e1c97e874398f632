import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from model_cards import card, picture, render


def test_rendered_texts_are_up_to_date() -> None:
    stale = [str(path) for path, text in render.render_all().items() if path.read_text() != text]
    assert stale == [], "run `make render`"


def test_card_metadata_is_read_by_the_hub_client_and_states_the_measured_values() -> None:
    for name in card.released():
        text = card.render_card(name)
        data = ModelCard(text).data
        result = card.load(card.words_of(name)["result"])
        assert (data.license, data.library_name, data.model_name) == ("mit", "transformers", name)
        found = {(one.dataset_type, one.metric_type): one for one in data.eval_results}
        assert len(found) == len(card.SETS) * len(card.METRICS)
        for (place, metric), one in found.items():
            measured = result[place.removeprefix("lgq_hf-")]
            assert one.metric_value == pytest.approx(measured[metric], abs=6e-5)
            assert one.metric_args["pictures"] == measured["pictures"] and one.metric_args["size"] == 256
            assert one.metric_args["resize"] == "shorter side, LANCZOS"
        assert not re.search(r"\$\w", text)
        assert f"]({card.PICTURE})" in text and (card.place_of(name).with_name(card.PICTURE)).is_file()


def test_codebook_and_cost_by_hand() -> None:
    row = {"codes_used": 3, "perplexity": 2.0, "entropy_bits": 1.0, "tokens": 8}
    table = card.codebook_table({"codebook_size": 4, **dict.fromkeys(card.SETS, row)})
    assert table.splitlines()[2].endswith("| 75.0% | 2 | 50.0% | 2.0 |")
    stages = [{"hours": 0.5, "hardware": "a CPU"}, {"hours": 1.0, "hardware": "a CPU"}]
    assert card.cost_line(stages).startswith("1.5 hours on a CPU for these weights")


def test_a_stage_is_told_of_either_form_of_record() -> None:
    recipe = {"batch_size": 8, "image_size": 64, "seed": 3}
    run = {"recipe": recipe, "steps": 1500, "hours": 0.25, "commit": "0123456789abcdef", "data": {"files": 9}}
    stage = card.stage_of({**run, "hardware": {"cpu": "a CPU", "threads": 2, "gpu": None}})
    assert card.stage_line(stage) == (
        "1,500 optimizer steps of 8 crops of 64 px, 0.2 hours on 2 threads of a CPU. Seed 3, commit `0123456789ab`."
    )
    assert stage["corpus"] == {"files": 9}
    decoder = {**run, "hardware": "a CPU", "recipe": {**run["recipe"], "train_only": "decoder"}}
    assert card.stage_line(card.stage_of(decoder)).startswith("1,500 optimizer steps of the decoder alone of 8 crops")
    assert card.stage_of({**run, "hardware": {"cpu": "a CPU", "threads": 2, "gpu": "a GPU"}})["hardware"] == "a GPU"


def test_baselines_stand_beside_the_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    def result(psnr: float) -> dict:
        row = {"psnr": psnr, "ssim": 0.5, "perceptual": 0.25, "top1_agreement": 0.75, "frechet_distance": psnr / 2}
        row |= {"codes_used": 3, "entropy_bits": 1.5, "pictures": 7}
        return {"codebook_size": 4, "protocol": {"network": "net"}, **dict.fromkeys(card.SETS, row)}

    monkeypatch.setattr(card, "load", lambda name: {"other": result(20.0)}[name])
    lines = card.baselines_part(result(24.0), {"VQ": "other"}).splitlines()
    rows = [line for line in lines if line.startswith("| test packages")]
    assert rows == [
        "| test packages of the corpus | this checkpoint | 24.00 | 0.500 | 0.250 | 0.75 | 3 of 4 | 1.50 |",
        "| test packages of the corpus | VQ | 20.00 | 0.500 | 0.250 | 0.75 | 3 of 4 | 1.50 |",
    ]
    (line,) = (line for line in lines if line.startswith("Fréchet distance of net features on the 7 pictures"))
    assert line.endswith(" (no FID): 12.0 (this checkpoint), 10.0 (VQ).")
    assert card.baselines_part(result(24.0), {}) == "" and lines[2] == card.BUDGET
    assert (
        card.baselines_part(result(24.0), {"VQ": "other"}, "Half of the steps:\n").splitlines()[2]
        == "Half of the steps:"
    )


def test_words_of_a_card_go_before_what_would_stand_there(monkeypatch: pytest.MonkeyPatch) -> None:
    words = card.words_of("lgq-16k")
    last = words["stages"][-1]
    more = {"notes": {last: "A note."}, "baselines": {"OTHER": words["result"]}, "baselines_budget": "A budget:"}
    monkeypatch.setattr(card, "words_of", lambda name: words | more)
    text = card.render_card("lgq-16k")
    assert re.search(rf"^{len(words['stages'])}\. .* A note\.$", text, re.MULTILINE)
    assert "## Beside other quantizers\n\nA budget:\n\n" in text and "| OTHER |" in text


def test_a_commit_is_short_and_says_that_the_tree_had_changes() -> None:
    assert card.short("0123456789abcdef") == "0123456789ab"
    assert card.short("0123456789abcdef+changes") == "0123456789ab+changes"
    assert card.short(None) == "unknown"


def test_a_card_names_the_licences_of_each_package() -> None:
    assert card.packages_table({"torcs-data": 733, "nexuiz-textures": 2}, {"torcs-data": 4}).splitlines()[2:] == [
        "| nexuiz-textures | 2 | GPL-2+ |",
        "| torcs-data | 733 (each 4 times in the last stage) | GPL-2+, Free Art License by file |",
    ]


def test_a_checkpoint_without_words_has_no_card() -> None:
    with pytest.raises(ValueError, match=r"no model_cards/none.yaml; there are cards of lgq-16k, lgq-tiny"):
        card.render_card("none")


def test_picture_of_a_card_is_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, "place_of", lambda name: tmp_path / name / "README.md")
    (tmp_path / "some").mkdir()
    Image.effect_noise((64, 32), 50).save(tmp_path / "wide.png")
    assert picture.main(["some", str(tmp_path / "wide.png")]) == 0
    with Image.open(tmp_path / "some" / card.PICTURE) as written:
        assert (written.format, written.size, written.mode) == ("JPEG", (64, 32), "RGB")


def test_a_changed_number_changes_the_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    load = card.load

    def changed(name: str) -> dict:
        result = load(name)
        if "photographs" in result:
            result["photographs"]["psnr"] += 1
        if name == "tiny_cpu":
            result["validation"][-1]["psnr"] += 1
        if name == "generator_tiny_ar_cpu":
            result["validation"][-1]["bits_per_token"] += 1
        return result

    monkeypatch.setattr(render, "load", changed)
    monkeypatch.setattr(card, "load", changed)
    assert all(path.read_text() != text for path, text in render.render_all().items())


@pytest.mark.parametrize(("part", "key"), [("metrics", "recall"), ("protocol", "guidance_scale")])
def test_an_evaluation_that_changes_changes_the_page(part: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load, page = render.load, render.ROOT / "docs" / "generating.md"

    def changed(name: str) -> dict:
        result = load(name)
        if name == "generator_debian_ar_cpu_evaluation":
            result[part][key] += 0.5
        return result

    monkeypatch.setattr(render, "load", changed)
    assert render.render_generating(page.read_text()) != page.read_text()


def test_readme_without_its_marker_is_refused() -> None:
    with pytest.raises(ValueError, match="exactly one part '<!-- rendered: quality -->', found 0"):
        render.render_readme("# nothing here")


def test_readme_tells_of_each_checkpoint_the_built_in_one_first() -> None:
    text = render.render_readme((render.ROOT / "README.md").read_text())
    rows = re.findall(r"^\| ([\w-]+) \(f(\d+), [\d.]+ M\) \| ([^|]+) \|", text, re.MULTILINE)
    assert {name for name, *_ in rows} == set(card.released())
    assert [name for name, *_ in rows[: len(card.SETS)]] == ["lgq-tiny"] * len(card.SETS)
    assert {(name, place) for name, _, place in rows} == {
        (name, place) for name in card.released() for place in card.SETS.values()
    }
    for name, factor, _ in rows:
        assert int(factor) == card.load(card.words_of(name)["result"])["downsampling_factor"]
