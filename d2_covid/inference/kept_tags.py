"""Header fields that the user asks to keep. Without asking, only UIDs and geometry of a DICOM header go out."""

from typing import Callable, Sequence

from ..data.limits import one_line, reading, require
from ..data.volumes import Series
from ..errors import UserError

PATIENT_AND_STUDY = frozenset(
    """PatientName PatientID IssuerOfPatientID TypeOfPatientID PatientBirthDate PatientBirthTime PatientSex
    OtherPatientNames PatientComments PatientSpeciesDescription PatientBreedDescription ResponsiblePerson
    ResponsiblePersonRole ResponsibleOrganization PatientIdentityRemoved DeidentificationMethod QualityControlSubject
    StudyDate StudyTime StudyID StudyDescription AccessionNumber ReferringPhysicianName ConsultingPhysicianName
    PhysiciansOfRecord NameOfPhysiciansReadingStudy RequestingService AdmittingDiagnosesDescription PatientAge
    PatientSize PatientWeight PatientBodyMassIndex MedicalAlerts Allergies Occupation SmokingStatus
    AdditionalPatientHistory PregnancyStatus LastMenstrualDate PatientSexNeutered ReasonForVisit AdmissionID
    ServiceEpisodeID ServiceEpisodeDescription PatientState ClinicalTrialSponsorName ClinicalTrialProtocolID
    ClinicalTrialProtocolName ClinicalTrialSiteID ClinicalTrialSiteName ClinicalTrialSubjectID
    ClinicalTrialSubjectReadingID ClinicalTrialTimePointID ClinicalTrialTimePointDescription""".split()
)
"""Keywords of DICOM's modules of patient and study: what a segmentation shares with the images that it is of. The rest
describes the images themselves; a segmentation has its own."""


def check_keywords(keywords: Sequence[str]) -> None:
    """Refuse what is no DICOM keyword, such as ``PatientName`` or ``StudyDate`` (:class:`UserError`)."""
    if not keywords:
        return
    require("pydicom", "--keep-tags")
    from pydicom.datadict import dictionary_VR, tag_for_keyword

    for keyword in keywords:
        tag = tag_for_keyword(keyword)
        if tag is None:
            raise UserError(f"--keep-tags {one_line(keyword)}: DICOM has no such keyword; it is spelt as PatientName.")
        if dictionary_VR(tag) in ("SQ", "OB", "OW", "OB or OW", "OF", "OD", "OL", "OV", "UN"):
            raise UserError(f"--keep-tags {keyword} is a sequence or binary; only single values can be kept.")


def read_tags(
    series: Series, keywords: Sequence[str], on_unread: Callable[[str], None] = lambda message: None
) -> dict[str, str]:
    """Values of header fields of a series' first file, each as one line, several as DICOM joins them by a backslash;
    those that it lacks are left out.

    Args:
        on_unread: called with a line for a value that can't be read, which is left out.

    Raises:
        UserError: the file can't be read any more.
    """
    if not keywords or series.kind != "dicom":
        return {}
    import pydicom

    path = series.source_files[0]
    values: dict[str, str] = {}
    with reading(path):
        dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(keywords), force=True)
        for keyword in keywords:
            try:
                values[keyword] = _joined(dataset.get(keyword))
            except Exception:  # pydicom raises every kind on a value that is none of its type
                on_unread(f"{one_line(path)}: what {keyword} holds there is no value of its type; it is not kept.")
    return {keyword: one_line(value) for keyword, value in values.items() if value}


def _joined(value: object) -> str:
    """A value as text: "" for none, several joined by a backslash."""
    several = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    return "\\".join(map(str, value)) if several else "" if value is None else str(value)
