"""Keyframes of the phantom's organs: contours in millimetres of a chest of average build, and their Hounsfield units.

+x is the patient's left, +y the back. A level runs from 0, the apex of the lungs, to 1, below the diaphragm.
"""

import numpy as np

# Hounsfield units
AIR, FAT, MUSCLE, BLOOD, LIVER, MARROW, CORTEX, CARTILAGE = -1000, -100, 48, 42, 62, 190, 720, 110
HEIGHT = 250.0  # millimetres from level 0 to level 1

# Inner chest wall, right half of the picture, from the sternum to the spine, at full width and depth.
CAGE = np.array(
    [(0, -72), (30, -76), (64, -66), (92, -42), (108, -8), (110, 26), (98, 56), (74, 76), (44, 83), (16, 80)], float
)
CAGE_SCALE = np.array(  # level, width, depth
    [(0, 0.66, 0.66), (0.12, 0.78, 0.80), (0.25, 0.92, 0.92), (0.4, 0.99, 0.98), (0.6, 1.04, 1.02), (0.8, 1.07, 1.03),
     (1, 1.06, 1.03)]
)  # fmt: skip
SPINE = np.array(  # level, y of the vertebral body, half-axes of the body
    [(0, 34, 15, 11), (0.2, 44, 15, 13), (0.5, 51, 17, 15), (0.8, 50, 19, 16), (1, 47, 21, 17)]
)
# The oval that a lung fills near its apex: level, |x|, y, half-axes.
APEX = np.array(
    [(0, 40, 14, 4, 5), (0.02, 40, 13, 16, 18), (0.06, 42, 10, 26, 30), (0.12, 48, 6, 36, 46), (0.2, 58, 2, 52, 66),
     (0.3, 64, 0, 90, 100)]
)  # fmt: skip
# Mediastinal organs. Rows: level, x, y, half-axes, degrees. An organ is absent outside its keyframes.
SOFT = {
    "visceral space": [(0, 0, 0, 34, 34, 0), (0.15, 0, -4, 32, 42, 0), (0.3, 3, 0, 28, 44, 0), (0.45, 4, 4, 25, 42, 0),
                       (0.7, 4, 14, 16, 34, 0), (1, 0, 14, 20, 34, 0)],
    "oesophagus": [(0, 5, 13, 7, 5, 0), (0.4, 6, 26, 8, 5, 0), (0.8, 10, 26, 9, 6, 20), (0.95, 16, 14, 10, 8, 20)],
    "azygos": [(0.35, -7, 30, 4, 4, 0), (1, -6, 32, 4, 4, 0)],
    "left liver lobe": [(0.86, 4, -36, 20, 14, 0), (0.92, 6, -46, 66, 38, 0), (1, 6, -44, 92, 56, 0)],
}  # fmt: skip
BLOOD_FILLED = {
    "brachiocephalic artery": [(0, -16, -4, 6, 6, 0), (0.27, -10, -20, 7, 7, 0)],
    "left carotid": [(0, 15, -4, 4, 4, 0), (0.27, 8, -14, 5, 5, 0)],
    "left subclavian": [(0, 28, 4, 5, 5, 0), (0.27, 22, 10, 6, 6, 0)],
    "superior vena cava": [(0, -26, -12, 7, 7, 0), (0.2, -25, -24, 8, 8, 0), (0.3, -28, -20, 9, 9, 0),
                           (0.54, -30, -12, 10, 10, 0)],
    "left brachiocephalic vein": [(0.17, 8, -36, 14, 5, -10), (0.2, 0, -37, 27, 6, -6), (0.24, -8, -34, 16, 5, 0)],
    "aortic arch": [(0.255, 10, -2, 12, 6, 58), (0.28, 8, -3, 37, 11, 58), (0.32, 8, -2, 38, 11, 60),
                    (0.335, 10, 0, 26, 6, 60)],
    "ascending aorta": [(0.3, -10, -26, 16, 16, 0), (0.5, -12, -28, 17, 17, 0), (0.6, -6, -22, 15, 15, 0)],
    "descending aorta": [(0.3, 25, 27, 12, 12, 0), (0.6, 21, 34, 12, 12, 0), (1, 9, 28, 11, 11, 0)],
    "pulmonary trunk": [(0.38, 18, -22, 9, 9, 0), (0.43, 17, -24, 15, 16, 0), (0.56, 10, -34, 18, 15, 0)],
    "left pulmonary artery": [(0.38, 32, 2, 8, 6, 40), (0.42, 31, -6, 18, 9, 60), (0.47, 38, 10, 9, 8, 40)],
    "right pulmonary artery": [(0.42, -10, -4, 14, 5, 8), (0.45, -14, -5, 30, 9, 8), (0.49, -34, 2, 10, 8, 30)],
    "left atrium": [(0.5, 0, 10, 24, 10, 0), (0.58, 4, 6, 36, 19, 0), (0.66, 4, 6, 32, 16, 0), (0.7, 4, 4, 16, 8, 0)],
    "right atrium": [(0.52, -24, -10, 16, 20, 0), (0.64, -24, -10, 26, 31, 0), (0.78, -20, -4, 20, 22, 0)],
    "heart": [(0.47, 0, -34, 22, 18, 0), (0.54, 8, -30, 44, 31, -12), (0.65, 17, -22, 60, 43, -22),
              (0.76, 24, -22, 63, 43, -22), (0.86, 32, -30, 48, 31, -18), (0.91, 36, -38, 26, 16, -14)],
    "inferior vena cava": [(0.74, -24, 4, 11, 10, 0), (1, -22, 8, 11, 10, 0)],
}  # fmt: skip
DOMES = ((-54.0, -16.0, 74.0, 80.0), (54.0, -24.0, 68.0, 88.0))  # x, y, half-axes once fully in the slice
