"""Native forms are read as they are written: characters are the text's, and what cannot be right is told in a line."""

import io
import tarfile
import zipfile

import pytest

from eval.tasks.bio import read_bio
from eval.tasks.brat import read_brat
from eval.tasks.files import read_file, read_files, split_files, split_of
from eval.tasks.pieces import cut, flat, lines
from eval.tasks.splits import cut_dev, drawn_by_datasets, largest_remainders, rounded_down, shuffled
from eval.tasks.tables import read_table
from eval.tasks.task import Span, span
from eval.tasks.xmi import read_xmi


def words(text, spans):
    return {(each.label, *(text[start:end] for start, end in each.ranges)) for each in spans}


def refused(work, *parts):
    with pytest.raises((ValueError, OSError)) as error:
        work()
    said = str(error.value)
    assert "\n" not in said and all(part in said for part in parts), said


# ---- brat

TEXT = "Hépatites B\net C ; toux.\r\n"
MARKED = (
    "T1\tDISO 0 11\tHépatites B\n"
    "T2\tDISO 15 16;0 9\tC Hépatites\n"  # discontinuous, out of order, overlapping T1
    "T3\tDISO 0 9\tHépatites\n"  # nested
    "T4\tDISO 10 14\tB et\n"  # over the end of a line
    "#1\tAnnotatorNotes T1\tC0019163\n"
    "N1\tReference T2 UMLS:C0019196\thépatite C\n"
    "#2\tAnnotatorNotes R1\tof a relation\n"
    "A1\tNegation T1\nR1\tof Arg1:T1 Arg2:T2\nE1\tDISO:T1\n*\tEquiv T1 T3\n"
)


def brat(text=TEXT, marked=MARKED):
    return {"dev/a.txt": text.encode(), "dev/a.ann": marked.encode()}


def test_brat_gives_nested_overlapping_and_discontinuous_mentions_with_their_notes():
    # Broken by: offsets in bytes; ranges left in the order of the file; notes of a relation kept.
    (document,) = read_brat(brat())
    assert document.name == "a"
    assert words(document.text, document.spans) == {
        ("DISO", "Hépatites B"),
        ("DISO", "Hépatites", "C"),
        ("DISO", "Hépatites"),
        ("DISO", "B\net"),
    }
    assert [mention.notes for mention in document.mentions] == [
        (("AnnotatorNotes", "C0019163"),),
        (("Reference", "UMLS:C0019196"),),
        (),
        (),
    ]


def test_ranges_that_touch_are_one():
    assert span([(3, 5), (0, 2), (2, 3)], "X") == Span(((0, 5),), "X")


@pytest.mark.parametrize(
    "marked, part",
    [
        ("T1\tDISO 0 9\thépatites\n", "a.ann:1 says 'hépatites', but the text has 'Hépatites' there"),
        ("T1\tDISO 20 99\tx\n", "a.ann:1 marks characters 20 to 99, but the text has 26"),
        ("T1\tDISO 9 9\t\n", "marks characters 9 to 9"),
        ("T1\tDISO 0-9\tHépatites\n", "a.ann:1 is no mention"),
        ("T1\tDISO 0 9\n", "a.ann:1 is no mention"),
        ("words of somebody\n", "a.ann:1 is 'words of somebody'"),
    ],
)
def test_brat_that_does_not_fit_its_text_is_refused(marked, part):
    # Broken by: the comparison of words left out of brat._placed.
    refused(lambda: read_brat(brat(marked=marked)), part)


def test_brat_is_two_files():
    refused(lambda: read_brat({"a.txt": b"x"}), "a.txt has no a.ann beside it")
    refused(lambda: read_brat({"a.ann": b""}), "a.ann has no a.txt beside it")


# ---- tokens and tags


def test_bio_finds_the_characters_of_tokens():
    # Broken by: one added for the space that is not there before the first token.
    data = b"-DOCSTART-\tO\n\nAspirine\tB-CHEM\ncontre\tO\nle\tB-DISO\nmal\tI-DISO\n\n\nfin\tS-X\n"
    first, second = read_bio(data, "train", "a.tsv")
    assert (first.id, first.text) == ("train:1", "Aspirine contre le mal")
    assert words(first.text, first.gold.spans) == {("CHEM", "Aspirine"), ("DISO", "le mal")}
    assert words(second.text, second.gold.spans) == {("X", "fin")}


@pytest.mark.parametrize(
    "tags, entities",
    [
        (["B-X", "B-X", "I-X"], {("X", "a"), ("X", "b c")}),
        (["O", "I-X", "I-X"], {("X", "b c")}),  # begins inside: an entity begins, as conlleval has it
        (["B-X", "I-Y", "I-X"], {("X", "a"), ("Y", "b"), ("X", "c")}),
        (["B", "I", "O"], {("entity", "a b")}),
        (["B-X", "I-X", "E-X"], {("X", "a b c")}),
        (["U-X", "B-X", "L-X"], {("X", "a"), ("X", "b c")}),
    ],
)
def test_tags_are_entities(tags, entities):
    # Broken by: `tag != f"I-{label}"` made `tag[0] != "I"`.
    data = "".join(f"{token} {tag}\r\n" for token, tag in zip("abc", tags, strict=True)).encode()
    (example,) = read_bio(data, "train", "a.conll")
    assert words(example.text, example.gold.spans) == entities


@pytest.mark.parametrize(
    "data, part",
    [
        ("a\tO\nb\tI-X\n", "a.tsv:1 has I-X at 'b' in a sentence where no B-X began"),
        ("a\tB-X\nb\tI-Y\n", "no B-Y began"),
        ("a\tO\nb\n", "a.tsv:2 is no token and its tag"),
        ("a\tO\n\tO\n", "a.tsv:2 is no token"),
        ("a\tDISO\n", "a.tsv:1 has the tag 'DISO'"),
        ("a\tB-\n", "has the tag 'B-'"),
        ("a\tB-X\rb\tO\r", "a.tsv:1 has a carriage return within"),
    ],
)
def test_a_users_tags_must_hold_together(data, part):
    refused(lambda: read_bio(data.encode(), "train", "a.tsv", strict=True), part)


# ---- XMI

XMI = (
    '<?xml version="1.0"?><xmi:XMI xmlns:xmi="http://www.omg.org/XMI" xmlns:cas="http:///uima/cas.ecore"'
    ' xmlns:type4="http:///x.ecore" xmlns:custom="http:///webanno/custom.ecore">{}</xmi:XMI>'
)
SOFA = '<cas:Sofa sofaString="Toux &amp;#10;fi&#232;vre"/>'.replace("&amp;#10;", "&#10;")


def test_xmi_gives_the_text_and_its_marks():
    marks = '<type4:Sentence begin="0" end="5"/><custom:CLINENTITY begin="6" end="12" entityID="C1"/>'
    text, found_marks = read_xmi(XMI.format(SOFA + marks).encode(), "a", ("Sentence", "CLINENTITY"))
    (mark,) = found_marks["CLINENTITY"]
    assert text[mark.start : mark.end] == "fièvre" and mark.attributes["entityID"] == "C1"
    assert [text[mark.start : mark.end] for mark in found_marks["Sentence"]] == ["Toux "]


@pytest.mark.parametrize(
    "data, part",
    [
        ('<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><x>&b;</x>', "declares a document type"),
        (XMI.format(SOFA)[:-4], "a is not XML"),
        (XMI.format(""), "holds 0 texts"),
        (XMI.format(SOFA + '<custom:CLINENTITY begin="6" end="90"/>'), "marks characters 6 to 90, but the text has 12"),
        (XMI.format(SOFA + '<custom:CLINENTITY begin="x" end="9"/>'), "marks characters x to 9"),
    ],
)
def test_xmi_that_is_none_is_refused(data, part):
    # Broken by: the line about <!DOCTYPE.
    refused(lambda: read_xmi(data.encode(), "a", ("CLINENTITY",)), part)


# ---- pieces


def test_a_document_is_cut_at_its_lines_and_spans_move_along():
    text = " a bb \n\n cc d\n"
    spans = [Span(((3, 5),), "X"), Span(((9, 11), (12, 13)), "Y")]
    first, second = cut("d", text, spans, lines(text))
    assert (first.id, first.text, second.id, second.text) == ("d:1", "a bb", "d:2", "cc d")
    assert words(first.text, first.gold.spans) == {("X", "bb")}
    assert words(second.text, second.gold.spans) == {("Y", "cc", "d")}


def test_a_span_across_pieces_is_refused():
    # Broken by: `if left` removed from pieces.cut.
    refused(lambda: cut("d", "ab\ncd", [Span(((1, 4),), "X")], lines("ab\ncd")), "d has 'b\\nc' at 1 to 4")


def test_flat_keeps_the_longest_then_the_first():
    spans = [Span(((0, 2),), "A"), Span(((0, 5),), "B"), Span(((0, 5),), "C"), Span(((5, 6), (8, 9)), "D")]
    assert flat([*spans, Span(((5, 6),), "E")]) == (spans[1], Span(((5, 6),), "E"))


# ---- splits


def test_splits_are_those_of_the_names():
    assert [split_of(name) for name in ("corpus/dev/EMEA/12.ann", "train_typed.tsv", "x/devel.iob", "testing.tsv")] == [
        "dev",
        "train",
        "dev",
        None,
    ]


def test_splits_are_drawn_by_a_seed():
    # The published code: random.Random(42).shuffle, then int(.8 n), int(.1 n) and the rest; for FRACCO what rounding
    # leaves goes to those it took most from.
    assert [rounded_down(count, (0.8, 0.1)) for count in (19, 1297)] == [(15, 1), (1037, 129)]
    assert [largest_remainders(count, (0.8, 0.1)) for count in (1300, 1297)] == [(1040, 130), (1037, 130)]
    names = shuffled("abcdefghij", (8, 1))
    assert names == {"train": list("hdcifgje"), "dev": ["a"], "test": ["b"]}
    kept, dev = cut_dev(range(19))
    assert len(dev) == 1 and sorted(kept + dev) == list(range(19)) and cut_dev(range(19)) == (kept, dev)
    assert cut_dev(range(50), seed=1) != cut_dev(range(50), seed=2)


def test_splits_are_those_that_datasets_draws():
    import datasets

    rows = datasets.Dataset.from_dict({"n": [*range(53)]})
    first = rows.train_test_split(test_size=0.2, seed=42)
    second = first["train"].train_test_split(test_size=0.125, seed=42)
    theirs = {"train": second["train"]["n"][:], "dev": second["test"]["n"][:], "test": first["test"]["n"][:]}
    assert drawn_by_datasets(range(53), 0.2, 0.125) == theirs


def test_a_split_has_one_file(tmp_path):
    (tmp_path / "train.tsv").touch()
    (tmp_path / "dev_1.tsv").touch()
    refused(lambda: split_files(tmp_path, (".tsv",)), "has no test split: put test.tsv there")
    (tmp_path / "test.tsv.gz").touch()
    assert [path.name for path in split_files(tmp_path, (".tsv",)).values()] == [
        "train.tsv",
        "dev_1.tsv",
        "test.tsv.gz",
    ]
    (tmp_path / "valid.tsv").touch()
    refused(lambda: split_files(tmp_path, (".tsv",)), "two files of dev")


# ---- tables


def test_a_table_has_rows_with_columns(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text('id\ttext\n1\t"a ""b"""\n2\tc\n')
    assert [row["text"] for _, row in read_table(path, ("id", "text"))] == ['"a ""b"""', "c"]
    assert [row["text"] for _, row in read_table(path, ("id", "text"), quotes=True)] == ['a "b"', "c"]
    refused(lambda: [*read_table(path, ("label",))], "has no field 'label': it has id, text; correct the name")
    path.write_text("id\ttext\n1\n")
    refused(lambda: [*read_table(path, ("id",))], "a.tsv:2 has 1 cells, the header 2")
    json_path = tmp_path / "a.json"
    json_path.write_text('[{"id": 1}, {"text": 2}]')
    refused(lambda: [*read_table(json_path, ("id",))], "a.json:2 has no 'id': it has text")


# ---- archives


def tar_of(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def zip_of(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


@pytest.mark.parametrize("suffix, write", [(".tar.gz", tar_of), (".zip", zip_of)])
def test_an_archive_is_read_where_it_lies(tmp_path, suffix, write):
    path = tmp_path / f"b{suffix}"
    write(path, {"c/b.txt": b"B" * 2**17, "c/.b.txt": b"", "__MACOSX/b.txt": b"", "a.png": b""})
    assert read_files(path, r"\.txt$") == {"c/b.txt": b"B" * 2**17}
    (tmp_path / "a.txt").write_bytes(b"A")
    assert [*read_files(tmp_path, r"\.txt$")] == ["a.txt", f"b{suffix}/c/b.txt"]
    path.write_bytes(path.read_bytes()[:-60])
    refused(lambda: read_files(path, "."), f"b{suffix} cannot be read")
    write(path, {"../b.txt": b"B"})
    refused(lambda: read_files(path, "."), "'../b.txt', which lies outside of it")


def test_an_archive_that_unpacks_to_far_more_than_text_is_refused(tmp_path, monkeypatch):
    # Broken by: check_size left out of files._of_zip.
    monkeypatch.setattr("cptjax.corpus.unpack.UNPACKED_BYTES", 2**20)
    for suffix, write in ((".tar.gz", tar_of), (".zip", zip_of)):
        path = tmp_path / f"b{suffix}"
        write(path, {"b.txt": bytes(2**22)})
        refused(lambda path=path: read_files(path, "."), "unpacks to more than 500 times its size")


def test_a_file_is_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xff")
    refused(lambda: read_brat({"a.txt": read_file(path), "a.ann": b""}), "a.txt is not UTF-8 at byte 0")
