"""The analysis as a program: what it prints, writes and refuses."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

np = pytest.importorskip("numpy")
Image = pytest.importorskip("PIL.Image")

from worker.demo.image import entrypoint  # noqa: E402 - NumPy first
from worker.demo.image.positive_pixel_count import cli  # noqa: E402

IMAGE_FILES = Path(entrypoint.__file__).parent


@pytest.fixture
def picture(tmp_path):
    """A picture that is white on the left and brown on the right."""
    pixels = np.full((20, 40, 3), 255, np.uint8)
    pixels[:, 30:] = (120, 80, 50)
    path = tmp_path / "a picture.png"
    Image.fromarray(pixels).save(path)
    return path


def run(tmp_path, picture, *options):
    return cli.main([str(picture), str(tmp_path / "out.png"), str(tmp_path / "out.json"), *options])


def test_the_outputs_hold_the_counts(tmp_path, picture, capsys):
    assert run(tmp_path, picture, "--tile", "7", "--returnparameterfile", str(tmp_path / "r.txt")) == 0
    counts = json.loads((tmp_path / "out.json").read_text())
    assert counts["pixels"]["total"] == 800
    assert counts["pixels"]["tissue"] == counts["stainedPixels"] == 200
    assert counts["stainedFraction"] == 1.0
    assert (tmp_path / "r.txt").read_text() == "stainedFraction = 1.000000\nstainedPixels = 200\n"
    marked = Image.open(tmp_path / "out.png")
    assert marked.size == (40, 20)
    assert len(set(marked.getpixel((5, 5)))) == 1, "unstained is grey"
    assert len(set(marked.getpixel((35, 5)))) > 1, "stained is coloured"
    output = capsys.readouterr().out
    assert output.index("<filter-start>") < output.index("<filter-progress>") < output.index("<filter-end>")
    assert "<filter-progress>1.000</filter-progress>" in output


def test_an_enlarged_picture_has_the_same_fraction(tmp_path, picture):
    assert run(tmp_path, picture, "--enlarge", "3") == 0
    counts = json.loads((tmp_path / "out.json").read_text())
    assert counts["pixels"]["total"] == 7200
    assert counts["pixels"]["tissue"] == pytest.approx(1800, rel=0.1)


def test_a_file_that_is_no_picture_is_named(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("no picture")
    assert run(tmp_path, tmp_path / "notes.txt") == 1
    assert "notes.txt is not a picture" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def test_a_cut_off_picture_is_refused(tmp_path, picture, capsys):
    rng = np.random.default_rng(4)
    Image.fromarray(rng.integers(0, 256, (60, 60, 3), dtype=np.uint8)).save(picture)
    picture.write_bytes(picture.read_bytes()[:2000])
    assert run(tmp_path, picture) == 1
    assert "a picture.png is damaged" in capsys.readouterr().err


def test_a_missing_file_is_named(tmp_path, capsys):
    assert run(tmp_path, tmp_path / "none.png") == 1
    assert "none.png: No such file" in capsys.readouterr().err


def test_sixteen_bits_are_refused(tmp_path, capsys):
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    assert run(tmp_path, tmp_path / "deep.png") == 1
    assert "an 8-bit colour picture is needed" in capsys.readouterr().err


def test_transparent_is_white(tmp_path):
    Image.new("RGBA", (6, 6), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert run(tmp_path, tmp_path / "clear.png") == 0
    assert json.loads((tmp_path / "out.json").read_text())["pixels"]["tissue"] == 0


@pytest.mark.parametrize(
    "options", [("--weak", "9"), ("--tile", "0"), ("--enlarge", "0"), ("--enlarge", "17")]
)
def test_parameters_out_of_range_are_a_usage_error(tmp_path, picture, capsys, options):
    assert run(tmp_path, picture, *options) == 2
    assert capsys.readouterr().err.startswith("PositivePixelCount: ")


def test_the_description_has_the_programs_parameters_and_defaults():
    document = ET.parse(IMAGE_FILES / "PositivePixelCount.xml")  # noqa: S314 - our own file
    parser = cli._parser()
    inputs = {}
    for parameter in document.iterfind("parameters/*"):
        if parameter.find("name") is not None and parameter.findtext("longflag"):
            inputs[parameter.findtext("longflag")] = float(parameter.findtext("default"))
    assert inputs == {
        name: value
        for name, value in vars(parser.parse_args(["a", "b", "c"])).items()
        if isinstance(value, int | float)
    }
    indexed = sorted(
        (int(parameter.findtext("index")), parameter.findtext("name"))
        for parameter in document.iterfind("parameters/*")
        if parameter.findtext("index")
    )
    assert [name for _, name in indexed] == ["inputImage", "outputImage", "outputCounts"]


def test_the_entry_point_lists_and_describes_its_analysis(capsys, monkeypatch):
    monkeypatch.chdir(IMAGE_FILES)
    assert entrypoint.main(["--list_cli"]) == 0
    assert json.loads(capsys.readouterr().out) == {"PositivePixelCount": {"type": "python"}}
    assert entrypoint.main(["PositivePixelCount", "--xml"]) == 0
    assert ET.fromstring(capsys.readouterr().out).tag == "executable"  # noqa: S314 - our own file


@pytest.mark.parametrize("arguments", [[], ["Other"], ["--xml"]])
def test_the_entry_point_says_how_it_is_used(capsys, arguments):
    assert entrypoint.main(arguments) == 2
    assert "usage:" in capsys.readouterr().err
