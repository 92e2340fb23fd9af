"""What the PHI patterns find, and the medical wording that they must leave alone."""

from __future__ import annotations

import pytest

from regionmed_clip.processing.corpus.phi_patterns import PHI_KINDS, find_phi

HITS = [
    ("date", "Compared with the film of 03/12/2011."),
    ("date", "Compared with 3/28/08."),
    ("date", "Study of 31.12.1999 shows no change."),
    ("date", "Prior 12-18-2003 was normal."),
    ("date", "Acquired 2010-08-19 in the morning."),
    ("date", "Acquired 20080331."),
    ("date", "Seen on 5 March 2011."),
    ("date", "Seen on the 5th of March, 2011."),
    ("date", "Seen on Mar. 5, 2011."),
    ("date", "CT of March 2011."),
    ("date", "CT of 14-Sep-2009."),
    ("date", "Unchanged since December 3rd."),
    ("phone", "Findings were called to 415-555-0132."),
    ("phone", "Called to (415) 555-0132 at once."),
    ("phone", "Call +49 30 1234567 for the images."),
    ("phone", "Pager: 5550132."),
    ("email", "Send images to j.doe@hospital.example."),
    ("url", "See https://pacs.hospital.example/12."),
    ("url", "See www.hospital.example/12."),
    ("ssn", "SSN 078-05-1120."),
    ("record-number", "MRN: 00123456"),
    ("record-number", "MRN 1652781 with effusion."),
    ("record-number", "Accession number CT-20394."),
    ("record-number", "accession # 93847561"),
    ("record-number", "Patient ID: PX4711"),
    ("record-number", "Pt # 40211"),
    ("dicom-uid", "Series 1.2.840.113619.2.55.3.604688."),
    ("name", "Discussed with Dr. Smith."),
    ("name", "Discussed with Dr J. O'Brien by phone."),
    ("name", "Mrs Jones fell."),
    ("name", "John Smith, MD"),
    ("name", "Uploader : Steven Goldstein"),
    ("name", "Patient name: Doe"),
    ("name", "DOE^JOHN"),
    ("name", "Electronically signed by Anna Berg"),
    ("address", "Lives at 12 Long Hill Road."),
    ("age-over-89", "A 93-year-old woman."),
    ("age-over-89", "Aged 101."),
    ("age-over-89", "94 yo man with cough."),
]
HARMLESS = [
    "Degenerative disc disease at C5-C6 and L4-L5.",
    "Wedge fracture of L1; T12/L1 facet arthropathy at T2/3/4.",
    "Nodule of 10 x 12 mm in segment 7, previously 8 x 9 mm.",
    "Lesion of 3.5 x 2.1 x 4 cm; sizes 10-12-15 mm.",
    "Ratio 1:2:3, grade 2/3, BI-RADS 4a, ASPECTS 8/10, TNM T2N1M0.",
    "BI-RADS 5 mass at 3 o'clock, 5 cm from the nipple.",
    "HU of -1000 to 400; window 1500/-600; W 400 : L 40.",
    "Echo time 117 ms, repetition time 8000 ms, slice 7/19.",
    "A 45-year-old man and an 89-year-old woman.",
    "98% oxygen saturation, heart rate 92, 95 mm from the carina.",
    "Paget disease, Hodgkin lymphoma, Kerley B lines, Swan-Ganz catheter.",
    "MR angiography; MS plaques; Ms. is a title, MD CT is multidetector.",
    "Drain in place; dr. unknown; doctor informed.",
    "May represent a small nodule. May 2 nodules be seen?",
    "The march of the disease since 2011; stable since 1999.",
    "6-12 months follow-up; 24 hours later; day 3/7.",
    "Follow-up in 3-6-12 months.",
    "The right upper lobe, 2-3 nodules, no. 4 rib, case of pneumonia.",
    "Version 1.2.3 of the atlas, sections 1.2.3.4.",
    "Seen on [**2011-03-04**] by Dr. [**Last Name (STitle) 12**].",
    "Compared with the study of ____ , no change.",
    "Case number of nodules is low; exam no significant change.",
    "The patient number is small.",
    "ICD-10 J18.9; LOINC 24627-2; SNOMED 233604007.",
    "Image size 512 x 512, 8-bit, 1024 levels, zoom 290%.",
    "2 mm calculus in the left kidney, 120 kVp, 100 mA.",
]


@pytest.mark.parametrize(("kind", "text"), HITS)
def test_personal_data_is_found_as_its_kind(kind, text):
    assert [hit.kind for hit in find_phi(text)] == [kind]


@pytest.mark.parametrize("text", HARMLESS)
def test_medical_wording_is_left_alone(text):
    assert find_phi(text) == ()


def test_a_hit_says_where_the_value_stands():
    text = "Effusion; MRN: 00123456, seen by Dr. Smith on 03/12/2011."
    assert [(hit.kind, text[hit.start : hit.stop]) for hit in find_phi(text)] == [
        ("record-number", "MRN: 00123456"),
        ("name", "Dr. Smith"),
        ("date", "03/12/2011"),
    ]


def test_every_kind_is_tried_and_says_what_it_is():
    assert {kind for kind, _ in HITS} == set(PHI_KINDS)
    assert all(title.startswith(("a ", "an ")) for title in PHI_KINDS.values())
