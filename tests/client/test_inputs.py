"""Which files a job takes along."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from oq_cluster.errors import UsageError
from oq_cluster.inputs import gather

LOGIC_TREE = """<nrml xmlns="http://openquake.org/xmlns/nrml/0.5"><logicTree><logicTreeBranchSet
 uncertaintyType="{kind}" branchSetID="bs"><logicTreeBranch branchID="b"><uncertaintyModel>{text}</uncertaintyModel>
</logicTreeBranch></logicTreeBranchSet></logicTree></nrml>"""


def write(folder: Path, **files: str) -> Path:
    """Files by their names, with __ for a slash and _ before the ending for a dot; the folder's job.ini."""
    for name, text in files.items():
        stem, _, ending = name.rpartition("_")
        path = folder / f"{stem.replace('__', '/')}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "job.ini"


def names(job_ini: Path) -> set[str]:
    job = gather(job_ini)
    return {job.name(file) for file in job.files}


def test_what_values_and_xml_inputs_name_comes_along_and_nothing_else(tmp_path: Path) -> None:
    ini = write(
        tmp_path,
        job_ini="[a]\nsource_model_logic_tree_file = trees/ssm.xml\nsite_model_file = s1.csv s2.csv\n"
        "vulnerability_file = {'structural': 'v.xml'}\nexport_dir = out\n",
        trees__ssm_xml=LOGIC_TREE.format(kind="sourceModel", text="../models/a.xml\n ../models/b.xml"),
        models__a_xml="<nrml><sourceModel>unread.xml</sourceModel></nrml>",
        models__a_hdf5="",
        models__unread_xml="",
        models__b_xml="<nrml/>",
        s1_csv="", s2_csv="", v_xml="<nrml/>", readme_md="", out__old_csv="",
    )  # fmt: skip
    assert names(ini) == {
        "job.ini", "trees/ssm.xml", "models/a.xml", "models/a.hdf5", "models/b.xml", "s1.csv", "s2.csv", "v.xml",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["job.ini.txt", "job.cfg", "job"])
def test_the_job_file_may_have_any_name(tmp_path: Path, name: str) -> None:
    ini = write(tmp_path, job_ini="[a]\nsite_model_file = sites.csv\n", sites_csv="").rename(tmp_path / name)
    assert names(ini) == {name, "sites.csv"}


@pytest.mark.parametrize(
    "text",
    [
        '<?xml version="1.0" encoding="Shift_JIS"?><nrml/>',  # which the parser has not
        '<?xml version="1.0" encoding="nonsense"?><nrml/>',
        "no XML",
    ],
)
def test_an_xml_file_that_cannot_be_parsed_comes_along_for_the_engine_to_say_so(
    tmp_path: Path, text: str
) -> None:
    ini = write(tmp_path, job_ini="[a]\nexposure_file = e.xml\n", e_xml=text)
    assert names(ini) == {"job.ini", "e.xml"}


def test_files_that_cannot_be_read_are_all_in_one_message_with_those_that_are_missing(tmp_path: Path) -> None:
    ini = write(
        tmp_path,
        job_ini="[a]\nexposure_file = e.xml\nsites_csv = s.csv\nsite_model_file = m.csv\n",
    )
    for name in ("e.xml", "s.csv"):
        (tmp_path / name).symlink_to("/proc/self/mem")  # a file of which nobody can read the beginning
    with pytest.raises(UsageError, match=r"site_model_file = m\.csv") as error:
        gather(ini)
    for name in ("e.xml", "s.csv"):
        assert f"{tmp_path / name} cannot be read: Input/output error" in str(error.value)


def test_files_outside_the_jobs_folder_keep_their_relative_paths(tmp_path: Path) -> None:
    ini = write(tmp_path / "study", job_ini="[a]\nsites_csv = ../shared/sites.csv\n")
    write(tmp_path, shared__sites_csv="")
    assert names(ini) == {"study/job.ini", "shared/sites.csv"}


def test_an_exposure_brings_its_assets_and_a_reinsurance_its_policies(tmp_path: Path) -> None:
    ini = write(
        tmp_path,
        job_ini="[a]\nexposure_file = e/exposure.xml\nreinsurance_file = {'structural': 'r.xml'}\n",
        e__exposure_xml="<nrml><exposureModel><assets>one.csv\ntwo.csv</assets></exposureModel></nrml>",
        e__one_csv="", e__two_csv="",
        r_xml="<nrml><reinsuranceModel><policies>p.csv</policies></reinsuranceModel></nrml>", p_csv="",
    )  # fmt: skip
    assert names(ini) == {"job.ini", "e/exposure.xml", "e/one.csv", "e/two.csv", "r.xml", "p.csv"}


def test_a_calculation_that_begins_with_another_brings_that_jobs_files(tmp_path: Path) -> None:
    ini = write(
        tmp_path,
        job_ini="[a]\nhazard_calculation_id = first.ini\n",
        first_ini="[a]\nsites_csv = s.csv\n",
        s_csv="",
    )
    assert names(ini) == {"job.ini", "first.ini", "s.csv"}


def test_all_files_that_are_missing_are_named_in_one_message(tmp_path: Path) -> None:
    ini = write(
        tmp_path,
        job_ini="[a]\nsource_model_logic_tree_file = ssm.xml\nsites_csv = none.csv\nsite_model_file = /abs.csv\n"
        "exposure_file = folder\n",
        ssm_xml=LOGIC_TREE.format(kind="sourceModel", text="gone.xml"),
        folder__x_csv="",
    )
    with pytest.raises(UsageError) as caught:
        gather(ini)
    text = str(caught.value)
    assert "sites_csv = none.csv: there is no" in text
    assert "site_model_file = /abs.csv: an absolute path" in text
    assert "ssm.xml: names gone.xml: there is no" in text
    assert "exposure_file = folder:" in text
    assert "is a directory" in text


def test_a_table_that_a_ground_motion_model_names_may_be_the_engines_own(tmp_path: Path) -> None:
    ini = write(
        tmp_path,
        job_ini="[a]\ngsim_logic_tree_file = gmm.xml\n",
        gmm_xml=LOGIC_TREE.format(kind="gmpeModel", text='[GMPETable]\ngmpe_table = "Wcrust.hdf5"'),
    )
    assert names(ini) == {"job.ini", "gmm.xml"}
    (tmp_path / "Wcrust.hdf5").touch()
    assert names(ini) == {"job.ini", "gmm.xml", "Wcrust.hdf5"}


def test_a_job_file_that_the_server_would_take_for_another_is_refused(tmp_path: Path) -> None:
    ini = write(
        tmp_path, job_ini="[a]\nhazard_calculation_id = a_job.ini\n", a_job_ini="[a]\ndescription = x\n"
    )
    with pytest.raises(UsageError, match=r"would take .*a_job\.ini"):
        gather(ini)


@pytest.mark.parametrize("text", ["no sections", "[a]\nx", None])
def test_what_is_no_job_file_is_refused(tmp_path: Path, text: str | None) -> None:
    ini = tmp_path / "job.ini"
    if text is not None:
        ini.write_text(text)
    with pytest.raises(UsageError, match=r"job\.ini"):
        gather(ini)


def test_a_byte_order_mark_and_percent_signs_are_no_trouble(tmp_path: Path) -> None:
    ini = tmp_path / "job.ini"
    ini.write_bytes(b"\xef\xbb\xbf[a]\ndescription = 10% in 50 years\n")
    assert gather(ini).description == "10% in 50 years"


def test_names_are_read_as_the_engine_reads_them(tmp_path: Path) -> None:
    """Of most parameters the whole value is one name; in XML inputs a name ends with a space."""
    ini = tmp_path / "job.ini"
    ini.write_text("[a]\nsource_model_logic_tree_file = my trees/ssmLT.xml\nexposure_file = a.xml b.xml\n")
    (tmp_path / "my trees").mkdir()
    (tmp_path / "my trees/ssmLT.xml").write_text(
        '<nrml><logicTreeBranchSet uncertaintyType="sourceModel"><uncertaintyModel>source_model(1).xml b=0.9.xml'
        "</uncertaintyModel></logicTreeBranchSet></nrml>"
    )
    found = ["my trees/source_model(1).xml", "my trees/b=0.9.xml", "a.xml", "b.xml"]
    for name in found:
        (tmp_path / name).write_text("<nrml/>")
    job = gather(ini)
    assert {job.name(file) for file in job.files} == {"job.ini", "my trees/ssmLT.xml", *found}


def test_what_comes_in_an_archive_of_the_job_is_not_missing(tmp_path: Path) -> None:
    """The engine unpacks the logic tree first, and finds the others beside it."""
    ini = tmp_path / "job.ini"
    ini.write_text("[a]\ngsim_logic_tree_file = gmmLT.xml\nsource_model_logic_tree_file = ssmLT.zip\n")
    with zipfile.ZipFile(tmp_path / "ssmLT.zip", "w") as archive:
        archive.writestr("ssmLT.xml", "<nrml/>")
        archive.writestr("gmmLT.xml", "<nrml/>")
    assert [file.name for file in gather(ini).files] == ["job.ini", "ssmLT.zip"]
    (tmp_path / "ssmLT.xml").write_text("<nrml/>")  # which the engine takes in its place
    with pytest.raises(UsageError, match="gmmLT"):
        gather(ini)
    (tmp_path / "ssmLT.xml").unlink()
    ini.write_text(ini.read_text() + "site_model_file = sites.csv\n")
    with pytest.raises(UsageError, match="site_model_file"):
        gather(ini)
