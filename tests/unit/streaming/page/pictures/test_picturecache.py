"""What is kept of pictures, in memory and on disk."""

import hashlib
import os
from pathlib import Path

from sparkdl.image.viewer import make_thumbnail
from streaming.page.pictures.picture import Picture
from streaming.page.pictures.picturecache import PictureCache, ThumbnailFolder, to_picture
from tests.testimages import gray_pixels, png


def picture(size_bytes: int) -> Picture:
    return Picture(bytes(size_bytes), "image/webp", "e", 1, 1)


def thumbnail() -> Picture:
    return to_picture(make_thumbnail(png(gray_pixels(300, 200)), origin="x"))


def name(number: int) -> str:
    return hashlib.sha256(bytes([number])).hexdigest()


def test_what_was_not_used_for_longest_goes_first() -> None:
    cache = PictureCache(100)
    for key in "abc":
        cache.put(key, picture(33))
    cache.get("a")
    cache.put("d", picture(30))
    assert [key for key in "abcd" if cache.get(key)] == ["a", "c", "d"]


def test_a_picture_that_is_put_twice_counts_once() -> None:
    cache = PictureCache(100)
    for _ in range(10):
        cache.put("a", picture(60))
    cache.put("b", picture(40))
    assert cache.get("a") and cache.get("b")


def test_a_picture_larger_than_all_room_is_not_kept() -> None:
    cache = PictureCache(100)
    cache.put("a", picture(101))
    assert cache.get("a") is None
    cache.put("b", picture(100))
    assert cache.get("b")


def test_thumbnails_outlive_the_process(tmp_path: Path) -> None:
    shown = thumbnail()
    ThumbnailFolder(tmp_path / "kept", 10**6).put(name(1), shown)
    assert ThumbnailFolder(tmp_path / "kept", 10**6).get(name(1)) == shown
    assert (tmp_path / "kept").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "kept" / f"{name(1)}.webp").stat().st_mode & 0o777 == 0o600


def test_the_oldest_thumbnails_go_first_and_nothing_else_is_touched(tmp_path: Path) -> None:
    shown = thumbnail()
    (tmp_path / "notes.webp").write_text("somebody else's")
    folder = ThumbnailFolder(tmp_path, 3 * len(shown.content))
    for number in range(5):
        folder.put(name(number), shown)
    assert [number for number in range(5) if folder.get(name(number))] == [2, 3, 4]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["notes.webp", *(f"{name(number)}.webp" for number in (2, 3, 4))]
    )


def test_a_smaller_bound_holds_from_the_start(tmp_path: Path) -> None:
    shown = thumbnail()
    folder = ThumbnailFolder(tmp_path, 10**6)
    for number in range(3):
        folder.put(name(number), shown)
        os.utime(tmp_path / f"{name(number)}.webp", (number, number))
    (tmp_path / f"{name(9)}.webp.new").write_bytes(b"half")
    smaller = ThumbnailFolder(tmp_path, len(shown.content))
    assert [path.stem for path in tmp_path.iterdir()] == [name(2)]
    assert smaller.get(name(2)) == shown


def test_a_damaged_thumbnail_is_none(tmp_path: Path) -> None:
    folder = ThumbnailFolder(tmp_path, 10**6)
    folder.put(name(1), thumbnail())
    (tmp_path / f"{name(1)}.webp").write_bytes(b"RIFF....WEBPVP8 ")
    assert folder.get(name(1)) is None
