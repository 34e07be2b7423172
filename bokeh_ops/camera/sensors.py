"""Sensors of common cameras, and which cameras are telephones.

Phones are not in the table: their several lenses have sensors of their own, and they record the 35 mm equivalent.
"""

from __future__ import annotations

import re
from functools import cache

from .optics import SENSORS

_MODELS = {
    "Full frame": """
        eos 5d, eos 5d mark ii, eos 5d mark iii, eos 5d mark iv, eos 5ds, eos 5ds r, eos 6d, eos 6d mark ii, eos-1ds,
        eos-1ds mark ii, eos-1ds mark iii, eos-1d x, eos-1d x mark ii, eos-1d x mark iii, eos r, eos rp,
        eos r1, eos r3,
        eos r5, eos r5m2, eos r5 mark ii, eos r6, eos r6m2, eos r6 mark ii, eos r8,
        d3, d3s, d3x, d4, d4s, d5, d6, d600, d610, d700, d750, d780, d800, d800e, d810, d810a, d850, df, z 5, z5_2,
        z 6, z 6_2, z6_3, z 7, z 7_2, z 8, z 9, z f,
        ilce-7, ilce-7r, ilce-7s, ilce-7m2, ilce-7rm2, ilce-7sm2, ilce-7m3, ilce-7rm3, ilce-7rm3a, ilce-7rm4,
        ilce-7rm4a, ilce-7rm5, ilce-7sm3, ilce-7m4, ilce-7c, ilce-7cm2, ilce-7cr, ilce-9, ilce-9m2, ilce-9m3, ilce-1,
        ilce-1m2, slt-a99, slt-a99v, ilca-99m2, dslr-a850, dslr-a900, dsc-rx1, dsc-rx1r, dsc-rx1rm2,
        k-1, k-1 mark ii, dc-s1, dc-s1r, dc-s1h, dc-s5, dc-s5m2, dc-s5m2x, dc-s9,
        m9, m9 digital camera, m (typ 240), m10, m10-p, m10-r, m11, q (typ 116), q2, q3, sl (typ 601), sl2,
        sl2-s, sl3,
        fp, fp l
    """,
    "APS-C": """
        d1, d1h, d1x, d2h, d2hs, d2x, d2xs, d40, d40x, d50, d60, d70, d70s, d80, d90, d100, d200, d300, d300s, d500,
        d3000, d3100, d3200, d3300, d3400, d3500, d5000, d5100, d5200, d5300, d5500, d5600, d7000, d7100,
        d7200, d7500,
        z 30, z 50, z50_2, z fc,
        ilce-3000, ilce-3500, ilce-5000, ilce-5100, ilce-6000, ilce-6100, ilce-6300, ilce-6400, ilce-6500, ilce-6600,
        ilce-6700, ilce-qx1, nex-3, nex-3n, nex-5, nex-5n, nex-5r, nex-5t, nex-6, nex-7, nex-c3, nex-f3,
        slt-a33, slt-a35, slt-a37, slt-a55, slt-a55v, slt-a57, slt-a58, slt-a65, slt-a65v, slt-a77, slt-a77v, ilca-68,
        ilca-77m2, dslr-a100, dslr-a200, dslr-a230, dslr-a290, dslr-a300, dslr-a330, dslr-a350, dslr-a380, dslr-a390,
        dslr-a450, dslr-a500, dslr-a550, dslr-a560, dslr-a580, dslr-a700, zv-e10, zv-e10m2,
        k10d, k20d, k100d, k100d super, k110d, k200d, k-x, k-r, k-m, k2000, k-7, k-5, k-5 ii, k-5 ii s, k-3, k-3 ii,
        k-3 mark iii, k-30, k-50, k-500, k-s1, k-s2, k-70, kp, kf, k-01, *ist d, *ist ds, *ist ds2, *ist dl, *ist dl2,
        x-pro1, x-pro2, x-pro3, x-e1, x-e2, x-e2s, x-e3, x-e4, x-e5, x-t1, x-t2, x-t3, x-t4, x-t5, x-t10,
        x-t20, x-t30,
        x-t30 ii, x-t50, x-t100, x-t200, x-h1, x-h2, x-h2s, x-m1, x-m5, x-a1, x-a2, x-a3, x-a5, x-a7, x-a10, x-s10,
        x-s20, x70, x100, x100s, x100t, x100f, x100v, x100vi, xf10, finepix x100, finepix s3pro, finepix s5pro,
        gr, gr ii, gr iii, gr iiix, cl, tl2, t (typ 701), x1, x2,
        nx5, nx10, nx11, nx20, nx30, nx100, nx200, nx210, nx300, nx300m, nx500, nx1, nx1000, nx1100, nx2000, nx3000
    """,
    "APS-C (Canon)": """
        eos 10d, eos 20d, eos 20da, eos 30d, eos 40d, eos 50d, eos 60d, eos 60da, eos 70d, eos 77d, eos 80d, eos 90d,
        eos 7d, eos 7d mark ii, eos 100d, eos 200d, eos 250d, eos 300d digital, eos 350d digital, eos 400d digital,
        eos 450d, eos 500d, eos 550d, eos 600d, eos 650d, eos 700d, eos 750d, eos 760d, eos 800d, eos 850d, eos 1000d,
        eos 1100d, eos 1200d, eos 1300d, eos 1500d, eos 2000d, eos 3000d, eos 4000d, eos d30, eos d60,
        eos digital rebel, eos digital rebel xt, eos digital rebel xti, eos rebel xs, eos rebel xsi, eos rebel t1i,
        eos rebel t2i, eos rebel t3, eos rebel t3i, eos rebel t4i, eos rebel t5, eos rebel t5i, eos rebel t6,
        eos rebel t6i, eos rebel t6s, eos rebel t7, eos rebel t7i, eos rebel t8i, eos rebel sl1, eos rebel sl2,
        eos rebel sl3, eos rebel t100, eos kiss digital, eos kiss digital n, eos kiss digital x, eos kiss x2,
        eos kiss x3, eos kiss x4, eos kiss x5, eos kiss x50, eos kiss x6i, eos kiss x7, eos kiss x7i, eos kiss x8i,
        eos kiss x9, eos kiss x9i, eos kiss x10, eos kiss x10i, eos kiss m, eos kiss f, eos m, eos m2,
        eos m3, eos m5, eos m6,
        eos m6 mark ii, eos m10, eos m50, eos m50m2, eos m50 mark ii, eos m100, eos m200, eos r7, eos r10, eos r50,
        eos r100
    """,
    "APS-H (Canon)": """
        eos-1d, eos-1d mark ii, eos-1d mark ii n, eos-1d mark iii, eos-1d mark iv
    """,
    "Micro Four Thirds": """
        e-1, e-3, e-5, e-30, e-300, e-330, e-400, e-410, e-420, e-450, e-500, e-510, e-520, e-600, e-620, e-p1, e-p2,
        e-p3, e-p5, e-p7, e-pl1, e-pl1s, e-pl2, e-pl3, e-pl5, e-pl6, e-pl7, e-pl8, e-pl9, e-pl10, e-pm1, e-pm2, e-m1,
        e-m1markii, e-m1markiii, e-m1x, e-m5, e-m5markii, e-m5markiii, e-m10, e-m10markii, e-m10markiii,
        e-m10markiiis,
        e-m10markiv, om-1, om-1markii, om-3, om-5, om-5markii, pen-f,
        dmc-g1, dmc-g2, dmc-g3, dmc-g5, dmc-g6, dmc-g7, dmc-g10, dmc-g70, dmc-g80, dmc-g81, dmc-g85, dmc-gf1, dmc-gf2,
        dmc-gf3, dmc-gf5, dmc-gf6, dmc-gf7, dmc-gf8, dmc-gh1, dmc-gh2, dmc-gh3, dmc-gh4, dmc-gm1, dmc-gm5, dmc-gx1,
        dmc-gx7, dmc-gx8, dmc-gx80, dmc-gx85, dmc-l1, dmc-l10, dc-g9, dc-g9m2, dc-g90, dc-g91, dc-g95,
        dc-g99, dc-g100,
        dc-g110, dc-gh5, dc-gh5s, dc-gh5m2, dc-gh6, dc-gh7, dc-gx9, dc-gx800, dc-gx850, dc-gf9, dc-gf10
    """,
    "1 inch": """
        dsc-rx100, dsc-rx100m2, dsc-rx100m3, dsc-rx100m4, dsc-rx100m5, dsc-rx100m5a, dsc-rx100m6, dsc-rx100m7,
        dsc-rx10, dsc-rx10m2, dsc-rx10m3, dsc-rx10m4, zv-1, zv-1m2, powershot g7 x, powershot g7 x mark ii,
        powershot g7 x mark iii, powershot g9 x, powershot g9 x mark ii, powershot g5 x,
        powershot g5 x mark ii, powershot g3 x, dmc-lx10,
        dmc-lx15, dmc-tz100, dmc-tz101, dmc-zs100, dc-tz200, dc-tz202, dc-zs200, dmc-fz1000, dc-fz1000m2, dmc-fz2000,
        dmc-fz2500, 1 j1, 1 j2, 1 j3, 1 j4, 1 j5, 1 v1, 1 v2, 1 v3, 1 s1, 1 s2, 1 aw1
    """,
    "2/3 inch": """
        powershot pro1, dsc-f717, dsc-f828, e5000, e5400, e5700, e8700, e8800, x10, x20, x30, xq1, xq2, x-s1
    """,
    "1/1.7 inch": """
        powershot g9, powershot g10, powershot g11, powershot g12, powershot g15, powershot g16, powershot s90,
        powershot s95, powershot s100, powershot s110, powershot s120, coolpix p6000, coolpix p7000, coolpix p7100,
        coolpix p7700, coolpix p7800, finepix s7000
    """,
    "1/1.8 inch": """
        powershot g1, powershot g2, powershot g3, powershot g5, powershot g6, powershot g7, powershot s30,
        powershot s40, powershot s45, powershot s50, powershot s60, powershot s70, powershot a620, powershot a630,
        powershot a640, e990, e995, e4500
    """,
    "Medium format 44 x 33": """
        gfx 50s, gfx 50r, gfx50s ii, gfx 100, gfx100, gfx100s, gfx100s ii, gfx100 ii, gfx100rf, x1d,
        x1d ii 50c, x2d 100c, 645d, 645z
    """,
}

_MAKERS = (
    "canon",
    "nikon corporation",
    "nikon",
    "sony",
    "pentax corporation",
    "pentax",
    "ricoh imaging company, ltd.",
    "ricoh",
    "fujifilm",
    "olympus corporation",
    "olympus imaging corp.",
    "olympus",
    "om digital solutions",
    "panasonic",
    "leica camera ag",
    "leica",
    "samsung techwin",
    "samsung",
    "hasselblad",
    "sigma",
)
# A letter and two digits would match anything: such names count with the right maker only.
_ONLY_WITH = {
    "leica": {"m9", "m10", "m11", "q2", "q3", "sl2", "sl3", "cl", "tl2", "x1", "x2"},
    "sigma": {"fp", "fp l"},
    "ricoh": {"gr", "gr ii", "gr iii", "gr iiix"},
    "nikon": {"df", *(f"d{number}" for number in (1, 3, 4, 5, 6))},
}

_PHONE_MAKERS = {
    "apple",
    "asus",
    "blackberry",
    "essential",
    "fairphone",
    "google",
    "hmd",
    "honor",
    "htc",
    "huawei",
    "infinix",
    "lenovo",
    "lg",
    "lge",
    "meizu",
    "microsoft",
    "motorola",
    "nokia",
    "nothing",
    "oneplus",
    "oppo",
    "palm",
    "poco",
    "realme",
    "redmi",
    "research in motion",
    "rim",
    "tcl",
    "tecno",
    "vivo",
    "wiko",
    "xiaomi",
    "zte",
}
_PHONE_MODELS = re.compile(
    r"iphone|ipad|ipod|pixel \d|galaxy|lumia|xperia|nexus|^(sm|gt|sgh|sch|sph|shv|xq|so)-[a-z]*\d|^samsung-s|^sov\d|"
    r"^sonyericsson",
)
_XPERIA = re.compile(r"[c-j]\d{4}")  # with Sony's name only: Nikon's first compact cameras are called E5700


def table_sensor(make: str | None, model: str | None) -> tuple[float, float] | None:
    """Width and height in metres of a camera's sensor, or None for a camera that is not in the table.

    Args:
        make: EXIF's Make.
        model: EXIF's Model.
    """
    if not model:
        return None
    maker, name = (make or "").lower().strip(), " ".join(model.lower().split())
    for prefix in _MAKERS:
        if name.startswith(prefix + " "):
            maker, name = maker or prefix, name[len(prefix) + 1 :].strip()
            break
    sensor = _table().get(name) or _table().get(name.replace(" ", ""))
    for owner, names in _ONLY_WITH.items():
        if name in names and owner not in maker:
            return None
    if sensor is None:
        return None
    width, height = SENSORS[sensor]
    return width / 1000, height / 1000


def is_smartphone(make: str | None, model: str | None) -> bool:
    """Whether make and model are those of a telephone or tablet."""
    maker = (make or "").lower().strip()
    name = (model or "").lower().strip()
    if maker in _PHONE_MAKERS or maker.split(" ")[0] in _PHONE_MAKERS:
        return True
    return bool(_PHONE_MODELS.search(name)) or ("sony" in maker and bool(_XPERIA.fullmatch(name)))


@cache
def _table() -> dict[str, str]:
    return {
        name.strip(): sensor
        for sensor, names in _MODELS.items()
        for name in " ".join(names.split()).split(",")
        if name
    }
