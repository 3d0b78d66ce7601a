"""Data that cannot be had without asking is read in the form that its descriptions have."""

import pytest

from cptjax.command.errors import DamageWarning
from eval.tasks.codes import keep_most_frequent
from eval.tasks.hub import read_hub
from eval.tasks.physionet import PHENOTYPES
from eval.tasks.registry import TASKS, labels_of, load
from eval.tasks.task import Hub
from tests.eval.tasks.test_families import put, splits
from tests.eval.tasks.test_forms import refused, words, zip_of


def test_the_most_frequent_codes_are_kept_and_documents_with_one_of_them():
    # Broken by: mentions counted for documents; ties by the order of reading.
    codes = {"d": ["b", "b", "b"], "a": ["c", "a"], "b": ["c"], "c": ["a", "z"]}
    assert keep_most_frequent(codes, 1) == {"a": ("a",), "c": ("a",)}
    assert keep_most_frequent(codes, 2) == {"a": ("a", "c"), "b": ("c",), "c": ("a",)}


def test_fracco_has_the_codes_of_a_document(tmp_path):
    rows = "".join(f"n{place}.ann,expression_CIM,8140/3;C50,x,0 1\n" for place in range(10))
    head = "\ufeffdoc_name,label,code,content,full_span\n"
    put(tmp_path / "FRACCO", {"DetectOnco_Final.csv": head + rows + "n0.ann,morphologie,9/9,x,0 1\n"})
    put(tmp_path / "FRACCO", {f"ann_txt_files/n{place}.txt": f"Cas {place}." for place in range(10)})
    examples = load(TASKS["fracco_30"], tmp_path)
    assert [len(examples[split]) for split in ("train", "dev", "test")] == [8, 1, 1]
    assert {example.gold.labels for example in examples["train"]} == {("8140/3", "C50")}
    assert labels_of(TASKS["fracco_30"], examples) == ("8140/3", "C50")
    put(tmp_path / "FRACCO", {"DetectOnco_Final.csv": head + "m.ann,expression_CIM,C1,x,0 1\n"})
    refused(lambda: load(TASKS["fracco_30"], tmp_path), "has codes of m, but no m.txt")


def test_frasimed_has_the_codes_of_a_scheme(tmp_path):
    # Broken by: codes of both schemes taken; words compared that were projected.
    noted = "T1\tmorphology-onco 0 3\tgrosseur\n#1\tICD-O-3.1 T1\t8500/3\n#2\tSNOMED T1\t58477004\n"
    for part in ("CANTEMIST-FRASIMED", "DISTEMIST-FRASIMED"):
        put(tmp_path / "FRASIMED" / part, {f"{place}.txt": f"Cas {place}." for place in range(20)})
        put(tmp_path / "FRASIMED" / part, {f"{place}.ann": noted for place in range(20)})
    for name, code in (("cantemist_fr", "8500/3"), ("distemist_fr", "58477004")):
        examples = load(TASKS[name], tmp_path)
        assert [len(examples[split]) for split in ("train", "dev", "test")] == [16, 2, 2]
        assert examples["test"][0].gold.labels == (code,)


def test_meddialog_joins_a_question_and_its_answer(tmp_path):
    folder = tmp_path / "MedDialog-FR-women"
    names = ("train", "dev", "test")
    labels = "".join(f"{name}_q\t{name}\t['C2', 'C1']\n" for name in names) + "none_q\ttrain\t[]\n"
    texts = "".join(f'{name}_q\tx\t"Pourquoi\n, ""{name}"" ?"\n{name}_a\tx\tParce que.\n' for name in (*names, "none"))
    put(folder, {"multilabel_annotation/dataset_multilabel_meddialog_22labels.csv": f"id\tsplit\tlabels\n{labels}"})
    put(folder, {"post-editing/meddialog-fr-women_post-editing.csv": f"id\tmachine_translation\tpost-edited\n{texts}"})
    (example,) = load(TASKS["meddialog_fr"], tmp_path)["train"]
    assert example.text == 'Question: Pourquoi\n, "train" ?\n\nRéponse: Parce que.'
    assert example.gold.labels == ("C1", "C2")


def test_diamed_leaves_out_cases_without_a_chapter(tmp_path):
    rows = '[{"clinical_case": " Cas. ", "icd-10": "C00-D49  Neoplasms"}, {"clinical_case": "x", "icd-10": null}]'
    put(tmp_path / "DiaMED", {f"{split}.json": rows for split in ("train", "validation", "test")})
    (example,) = load(TASKS["diamed"], tmp_path)["dev"]
    assert (example.text, example.gold.labels) == ("Cas.", ("C00-D49  Neoplasms",))


def test_gad_has_a_head_or_none(tmp_path):
    row = "@GENE$ in @DISEASE$\t1\n"
    files = splits("{}.tsv", row, test=f"index\tsentence\tlabel\n0\t{row}")
    put(tmp_path / "GAD", files | {"train.tsv": row + row.replace("\t1", "\t0")})
    examples = load(TASKS["gad"], tmp_path)
    assert [each.gold.labels for each in examples["train"]] == [("1",), ("0",)]
    assert [each.text for each in examples["test"]] == ["@GENE$ in @DISEASE$"]


def test_cos_has_a_sentence_a_line(tmp_path):
    text = "".join(f"Slight increase {place}.\n" for place in range(20))
    marked = f"T1\tCos 0 15\tSlight increase\nT2\tCos {text.index('increase')} 15\tincrease\n"
    files = {f"r/data/snippet1_20.{end}": data.encode() for end, data in (("txt", text), ("ann", marked))}
    zip_of(tmp_path / "events-COS-corpus.zip", files)
    examples = load(TASKS["cos"], tmp_path)
    assert [len(examples[split]) for split in ("train", "dev", "test")] == [14, 3, 3]
    (marked_example,) = (each for split in examples.values() for each in split if each.gold.spans)
    assert words(marked_example.text, marked_example.gold.spans) == {("Cos", "Slight increase")}


def test_phenotypes_of_a_note(tmp_path):
    names = [name for name in PHENOTYPES if name != "OBESITY"]
    head = ",".join(["ROW_ID", "NONE", "OBESITY", *names])
    zeros = ",".join("0" * len(names))
    rows = "".join(f"{place},0,1,{zeros}\n" for place in range(20)) + f"3,1,0,{zeros}\n4,1,1,{zeros}\n"
    notes = "".join(f'{place},"Note\n""{place}"""\n' for place in range(30))
    put(tmp_path / "phenotype", {"ACTdb102003.csv": f"{head}\n{rows}", "NOTEEVENTS.csv": f"ROW_ID,TEXT\n{notes}"})
    examples = {each.id: each for split in load(TASKS["phenotype"], tmp_path).values() for each in split}
    assert len(examples) == 21 and examples["5"].text == 'Note\n"5"'
    assert (examples["3"].gold.labels, examples["3 again 2"].gold.labels) == (("OBESITY",), ())


RECORD = "START_OF_RECORD={}||||1||||\n{}\n||||END_OF_RECORD\n\n"


def test_what_identifies_somebody_is_found_by_its_mark(tmp_path):
    # Broken by: spaces around what was replaced kept in the span.
    text = "Pt J. Doe seen 3/4 at  Mercy. Call 555"
    marked = "Pt [**Name**] seen [**3-4**] at [**Hospital1 **]. Call [**Telephone/Fax**]"
    records = [(text, marked)] * 19 + [("a b", "a c")]
    for name, place in (("id.text", 0), ("id.res", 1)):
        put(tmp_path / "deid", {name: "".join(RECORD.format(n, pair[place]) for n, pair in enumerate(records))})
    with pytest.warns(DamageWarning, match="1 of 20 records of .* are left out"):
        examples = load(TASKS["deid"], tmp_path)
    assert [len(examples[split]) for split in ("train", "dev", "test")] == [13, 2, 4]
    example = examples["test"][0]
    assert words(example.text, example.gold.spans) == {
        ("name", "J. Doe"),
        ("date", "3/4"),
        ("location", "Mercy"),
        ("phone_nb", "555"),
    }


def test_a_data_set_without_a_script_is_read_by_its_columns(tmp_path):
    import datasets

    tags = datasets.List(datasets.ClassLabel(names=["O", "B-X", "I-X"]))
    features = datasets.Features({"tokens": datasets.List(datasets.Value("string")), "ner_tags": tags})
    rows = {"tokens": [["a", "b"]], "ner_tags": [[1, 2]]}
    parts = {name: datasets.Dataset.from_dict(rows, features) for name in ("train", "validation", "test")}
    for name, part in parts.items():
        part.to_parquet(tmp_path / f"tags/{name}.parquet")
        part = datasets.Dataset.from_dict({"text": ["t"], "codes": [["C1"]], "label": ["C1"], "name": ["d"]})
        part.to_parquet(tmp_path / f"codes/{name}.parquet")
    (tagged,) = read_hub(Hub(str(tmp_path / "tags"), {}))["dev"]
    assert words(tagged.text, tagged.gold.spans) == {("X", "a b")}
    (coded,) = read_hub(Hub(str(tmp_path / "codes"), {"codes": "labels", "name": "id"}))["test"]
    assert (coded.id, coded.gold.labels) == ("d", ("C1",))
    refused(lambda: read_hub(Hub(str(tmp_path / "nothing"), {})), "nothing cannot be read from the Hub")
