"""One patient in front of one detector: everything along each ray, summed."""

import numpy as np

from xray.phantom.chance import TEXTURE, VESSELS, open_stream
from xray.phantom.geometry import Ellipsoid, Plane, Profile, join_points
from xray.phantom.images import Map, noise_field, resize
from xray.phantom.lesions import fill_share
from xray.phantom.organs import (
    list_heart_parts,
    measure_below_dome,
    measure_body_depth,
    measure_off_middle,
    measure_outward,
)
from xray.phantom.patient import Anatomy
from xray.phantom.skeleton import draw_clavicle, draw_shoulder_bones, draw_shoulder_plates, draw_spine, make_rib_cage
from xray.phantom.vessels import draw_airway, find_hila, grow_vessels

# Attenuation in 1/cm at about 120 kVp.
_MU_SOFT = 0.185
_LUNG_AIR = 0.74  # by volume: the rest of an inflated lung is blood and tissue
_VESSEL_GAIN = 2.4  # veins run along arteries and bronchial walls along both: none is drawn


class Chest:
    """One patient in front of one detector."""

    def __init__(self, plane: Plane, anatomy: Anatomy, seed: int) -> None:
        self._plane, self._anatomy, self._seed = plane, anatomy, seed
        self._ribs = make_rib_cage(anatomy)
        self._midline = Profile((-10, 2, 14, 30), (0, anatomy.scoliosis, -anatomy.scoliosis, 0), 6.0)
        # These maps are smooth (the edges come from square roots of them later): a quarter of the pixels is enough.
        rough = plane.halved()
        outward = measure_outward(rough, self._ribs, self._midline)
        self._body_depth, self._outward, self._below_dome, self._off_middle = (
            resize(smooth, plane.shape)
            for smooth in (
                measure_body_depth(rough, anatomy),
                outward,
                measure_below_dome(rough, outward, anatomy),
                measure_off_middle(rough, self._midline, anatomy),
            )
        )
        self.lungs: Map = self._lung_depth()
        # Vessels show against air only: they fade where the lung thins out in front of heart and diaphragm.
        vessels = self._vessel_tree() * np.clip(self.lungs / 7, 0, _VESSEL_GAIN)
        self._vessels: Map = np.minimum(vessels, self.lungs * np.float32(0.7)).astype(np.float32)

    def ray_sum(self) -> Map:
        """Line integral of attenuation through the healthy chest, without unit, shape (height, width)."""
        air = np.float32(_LUNG_AIR) * (self.lungs - self._vessels) * self._parenchyma()
        soft = np.clip(self._body_depth - air - self._other_air(), 0, None)
        return np.float32(_MU_SOFT) * soft + self._bones()

    def opacities(self) -> Map:
        """Return what fluid in the air spaces adds to :meth:`ray_sum`; 0 outside the lungs."""
        x, outward, below = (resize(m, self._plane.quarter) for m in (self._plane.x, self._outward, self._below_dome))
        filled = resize(fill_share(np.sign(x) * outward, below, self._seed), self._plane.shape)
        return np.float32(_MU_SOFT * _LUNG_AIR) * (self.lungs - self._vessels) * filled

    # -- lungs

    def _lung_depth(self) -> Map:
        half = self._ribs.depth_profile()(self._plane.y)
        inside = np.clip(1 - self._outward**2, 0, 1)
        chord = 2 * half * np.sqrt(inside)
        # The diaphragm is fixed high in front and low at the back, so lung goes on behind its dome.
        recess = 0.5 + 4.5 * inside
        front, back = (np.sqrt(np.clip(self._below_dome / fall, 0, 1)) for fall in (np.float32(0.8), recess))
        above = chord * (1 - 0.5 * front - 0.5 * back)
        # The heart rests on the dome and fills the same depth: take the larger of the two, not their sum.
        return np.asarray(np.clip(np.minimum(above, chord - self._mediastinum(half)), 0, None), np.float32)

    def _mediastinum(self, half_depth: Map) -> Map:
        strip = 2 * half_depth * np.sqrt(np.clip(1 - self._off_middle**3, 0, None))
        heart = self._plane.zeros()
        for organ in list_heart_parts(self._anatomy):
            organ.merge_into(heart, self._plane)
        return np.asarray(np.maximum(strip, heart * np.clip(1 - self._below_dome / 2.5, 0, 1)), np.float32)

    def _parenchyma(self) -> Map:
        """Unevenness of the air content, in both findings alike.

        A lung is never flat grey, and chest wall, posture and blood flow shade it broadly: grey levels alone should say
        little about the finding.
        """
        rng = open_stream(self._seed, TEXTURE)
        coarse = self._plane.quarter
        uneven = 0.01 * noise_field(rng, coarse, 80) + 0.014 * noise_field(rng, coarse, 26)
        broad = rng.uniform(0.08, 0.16) * noise_field(rng, coarse, 5)
        shallow = rng.uniform(0, 0.15)  # one patient breathes in less than the next
        return 1 + resize(uneven + np.clip(broad, -0.35, 0.25), self._plane.shape) - np.float32(shallow)

    def _vessel_tree(self) -> Map:
        rng = open_stream(self._seed, VESSELS)
        branches = [grow_vessels(rng, hilum, side) for hilum, side in find_hila(self._anatomy)]
        return self._plane.splat(*join_points(branches))

    # -- the rest of the body

    def _other_air(self) -> Map:
        """Trachea, main bronchi and the stomach's bubble, as thickness of air in cm."""
        a, total = self._anatomy, self._plane.zeros()
        if a.gastric_bubble:
            top = 20.6 + a.inspiration + a.hemidiaphragm_gap
            across, tall = 2.2 + 0.5 * a.gastric_bubble, 1.6 + 0.4 * a.gastric_bubble
            Ellipsoid(6.4 + a.heart_shift, top + 1.0 + tall, across, tall, a.gastric_bubble / 2, 8).add_to(
                total, self._plane
            )
            # Standing, the stomach holds its gas over a level of fluid.
            total *= np.clip((top + 2.4 + a.gastric_bubble / 2 - self._plane.y) * 3, 0, 1)
        shift = a.heart_shift
        trachea = draw_airway([(0.1, -12), (0.1 + shift * 0.3, -2), (-0.2 + shift * 0.6, 4), (-0.1 + shift, 8.6)], 0.74)
        right = draw_airway([(-0.2 + shift, 8.0), (-1.6 + shift, 9.8), (-3.6 + shift, 12.0)], 0.55)
        left = draw_airway([(0.0 + shift, 8.0), (2.0 + shift, 9.8), (4.6 + shift, 11.4)], 0.48)
        return total + self._plane.splat(*join_points([trachea, right, left]))

    def _bones(self) -> Map:
        a, plane = self._anatomy, self._plane
        hanging = [bone for side in (-1, 1) for bone in (*draw_shoulder_bones(a, side), draw_clavicle(a, side))]
        drawn = plane.splat(*join_points([self._ribs.points(), *hanging]))
        return drawn + draw_spine(plane, a, self._midline) + draw_shoulder_plates(plane, a)
