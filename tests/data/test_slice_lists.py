"""Parsers of slice lists: COVIDx-CT's, the paper's, CSV."""

from d2_covid.data.slice_lists import (
    IMAGE_CLASSES,
    class_number,
    cncb_file,
    count_by_class,
    covidx_ids,
    read_list,
    remark_on_first,
)
from d2_covid.errors import UserError

import pytest


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "list.txt"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize(
    "file, patient, scan",
    [
        ("NCP_96_1328_0035.png", "NCP_96", "NCP_96_1328"),
        ("Normal_1739_1042_0000.png", "Normal_1739", "Normal_1739_1042"),
        ("0_1728_1013_0023.png", "Normal_1728", "Normal_1728_1013"),  # the paper's list: the same patient
        ("2_96_1328_0035.png", "NCP_96", "NCP_96_1328"),
        ("images/CP_1_2_0003.png", "CP_1", "CP_1_2"),
        ("HUST-Patient12-0023.png", "HUST-Patient12", "HUST-Patient12"),
        ("LIDC-IDRI-0068-1.3.6.1.4-0012.png", "LIDC-IDRI-0068", "LIDC-IDRI-0068-1.3.6.1.4"),
        ("volume-covid19-A-0003-0010.png", "volume-covid19-A-0003", "volume-covid19-A-0003"),
        ("volume-covid19-A-0003_ct-0010.png", "volume-covid19-A-0003", "volume-covid19-A-0003_ct"),
        ("coronacases_001-0094.png", "coronacases_001", "coronacases_001"),
        ("radiopaedia_10_85902_1-0012.png", "radiopaedia_10_85902", "radiopaedia_10_85902_1"),
        ("radiopaedia-30072-30690-0-0012.png", "radiopaedia-30072", "radiopaedia-30072-30690-0"),
        ("137covid_patient1_SR_2_IM00001.png", "patient1", "137covid_patient1_SR_2"),
        ("COVIDCTMD-cap001-IM0001.png", "COVIDCTMD-cap001", "COVIDCTMD-cap001"),
        ("STOIC-1234-0033.png", "STOIC-1234", "STOIC-1234"),
        ("A000801-CT-CHEST-4-0123.png", "A000801", "A000801-CT-CHEST-4"),
        ("study_0255-0022.png", "study_0255", "study_0255"),
        ("holiday.png", "", ""),
    ],
)
def test_ids_of_every_covidx_source(file, patient, scan):
    assert covidx_ids(file) == (patient, scan)


def test_covidx_lines_with_and_without_box(write):
    listed = read_list(write("Normal_1_2_0000.png 0 0 131 512 401\n\nNCP_3_4_0009.png\t2\t0 1 2 3\n"))
    assert [(s.file, s.image_class, s.patient_id, s.scan_id, s.line) for s in listed] == [
        ("Normal_1_2_0000.png", 0, "Normal_1", "Normal_1_2", 1),
        ("NCP_3_4_0009.png", 2, "NCP_3", "NCP_3_4", 3),
    ]
    assert [s.image_class for s in read_list(write("a.png 1\nb.png 0\n"))] == [1, 0]


def test_the_papers_list_has_the_class_in_the_name(write):
    listed = read_list(write("0_1728_1013_0023.png\n2_96_1328_0035.png\n1_5_6_0001.png"))
    assert [(s.image_class, s.patient_id) for s in listed] == [(0, "Normal_1728"), (2, "NCP_96"), (1, "CP_5")]
    assert cncb_file(listed[0].file) == "Normal_1728_1013_0023.png"
    assert cncb_file("folder/1_5_6_0001.png") == "folder/CP_5_6_0001.png"
    assert cncb_file("1_5.png") == "1_5.png"


def test_csv_with_few_and_with_all_columns(write):
    listed = read_list(write("\ufefffile,label\na b.png,COVID-19\nc.png,normal\n"))
    assert [(s.file, s.image_class, s.patient_id + s.split) for s in listed] == [("a b.png", 2, ""), ("c.png", 0, "")]
    listed = read_list(write("label,split,patient_id,scan_id,file,age\n1,val,p7,s2,x\\y.png,80\n"))
    assert (listed[0].file, listed[0].image_class, listed[0].split) == ("x/y.png", 1, "val")
    assert (listed[0].patient_id, listed[0].scan_id, listed[0].line) == ("p7", "s2", 2)


@pytest.mark.parametrize(
    "header, patient",
    [("File,LABEL,Patient_ID", "p7"), ("file,label,Patient_ID,patient_id", "p8"), ("Label,file,label,patient_id", "")],
)
def test_columns_of_a_csv_in_any_case(write, header, patient):
    row = "flu,x.png,1" if header.startswith("Label") else "x.png,1,p7,p8"
    (found,) = read_list(write(f"{header}\n{row}\n"))
    assert (found.file, found.image_class, found.patient_id) == ("x.png", 1, patient)


@pytest.mark.parametrize(
    "written, known", [("12.0", "12"), ("7", "7"), ("p.0", "p.0"), ("12.50", "12.50"), ("0012.00", "0012")]
)
def test_a_patient_is_the_same_however_its_number_is_written(write, written, known):
    # A table's column of whole numbers turns to floats where some are missing.
    (found,) = read_list(write(f"file,label,patient_id,scan_id\nx.png,1,{written},{written}\n"))
    assert (found.patient_id, found.scan_id) == (known, known)


@pytest.mark.parametrize("written", ["", " ", "NA", "nan", "NaN", "None", "null", "N/A", "<NA>"])
def test_a_patient_that_is_missing_in_a_table_is_nobody(write, written):
    (found,) = read_list(write(f"file,label,patient_id\nx.png,1,{written}\n"))
    assert found.patient_id == ""


@pytest.mark.parametrize(
    "label, classes, number",
    [
        ("2", IMAGE_CLASSES, 2),
        ("3", IMAGE_CLASSES, None),
        ("-1", IMAGE_CLASSES, None),
        ("covid-19", IMAGE_CLASSES, 2),
        ("NCP", IMAGE_CLASSES, 2),
        ("CAP", IMAGE_CLASSES, 1),
        ("Normal", IMAGE_CLASSES, 0),
        ("normal", ("covid", "normal"), 1),  # a set's own names come before aliases
        ("flu", IMAGE_CLASSES, None),
        ("", IMAGE_CLASSES, None),
        ("1", ("1", "2", "3"), 0),  # where numbers are names, they are that alone
        ("3", ("1", "2", "3"), 2),
        ("0", ("1", "2"), None),
        ("0", ("control", "1"), None),
    ],
)
def test_class_by_number_name_or_alias(label, classes, number):
    assert class_number(label, classes) == number


@pytest.mark.parametrize(
    "classes, diseased",
    [
        (IMAGE_CLASSES, False),
        (("Normal", "NCP"), False),
        (("well", "ill"), False),
        (("not COVID-19", "COVID-19"), False),
        (("1", "0", "2"), False),  # of CO-RADS, say
        (("ill", "healthy"), True),
        (("NCP", "CP"), True),
        (("covid", "other"), True),
        ((), False),  # a model that doesn't classify
    ],
)
def test_names_may_tell_that_the_first_class_is_diseased(classes, diseased):
    remark = remark_on_first(classes)
    assert (remark is not None) == diseased
    assert not diseased or f"{', '.join(classes)} the first, {classes[0]}, is taken for" in remark


def test_classes_called_by_numbers_are_listed_without_others(write):
    with pytest.raises(UserError, match="line 3: unknown class '0'; the classes are 1, 2.$"):
        read_list(write("file,label\na.png,1\nb.png,0\n"), ("1", "2"))


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "lists no slices"),
        ("file,label\n", "lists no slices"),
        ("a.png 0 1 2\n", "line 1: expected"),
        ("a.png 0\nb.png 0 1 2 3 x\n", "line 2: the box"),
        ("a.png 0\n\nb.png 7\n", "line 3: unknown class '7'; the classes are 0 control"),
        ("file,label\na.png,0\nb.png,flu\n", "line 3: unknown class 'flu'"),
        ("name,label\na.png,0\n", "lacks 'file'"),
        ("file,label\n,0\n", "line 2: no file"),
        ("a.png 0\na.png 1\n", "line 2: a.png has another class or split there than on line 1"),
        ("file,label,split\na.png,0,train\na.png,0,val\n", "line 3: a.png has another class or split"),
    ],
)
def test_what_a_list_may_not_be(write, text, said):
    with pytest.raises(UserError, match=said) as error:
        read_list(write(text))
    assert "list.txt" in str(error.value) and "\n" not in str(error.value)


def test_a_list_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_list(tmp_path / "none.txt")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(UserError, match="can't be read"):
        read_list(tmp_path / "image.png")


def test_a_quotation_mark_without_its_pair(write):
    path = write('file,label\n"a.png,0\n' + "b.png,1\n" * 20_000)
    with pytest.raises(UserError, match=r"list\.txt is no csv file .*quotation mark"):
        read_list(path)


def test_a_repeated_line_counts_once(write):
    assert len(read_list(write("a.png 0\nb.png 1\na.png 0\n"))) == 2


def test_real_lists(real_data):
    folder = real_data / "covidx_ct"
    listed = {split: read_list(folder / f"{split}_COVIDx-CT.txt") for split in ("train", "val", "test")}
    assert {split: count_by_class(entries, 3) for split, entries in listed.items()} == dict.fromkeys(listed, [60] * 3)
    assert all(entry.patient_id and entry.scan_id for entries in listed.values() for entry in entries)
    paper = read_list(folder / "train_split_classification.txt")
    assert count_by_class(paper, 3) == [60, 0, 0]
    assert paper[0].patient_id == "Normal_1728"
