from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from fedseg.errors import DataError, StorageError
from fedseg.imaging.maps import write_labels_like, write_maps_like
from fedseg.imaging.nifti import read_header, read_image, read_labels, same_grid, write_whole

nib: Any = nibabel
Save = Callable[..., Path]
LIP = np.array([[-0.8, 0, 0, 10], [0, 0, -0.7, -20], [0, -0.9, 0, 30], [0, 0, 0, 1.0]])


@pytest.fixture
def ramp() -> np.ndarray[Any, Any]:
    return np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)


def _refused(read: Callable[[Path], object], path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


def test_reads_data_axes_and_spacing(tmp_path: Path, save: Save, ramp: Any) -> None:
    volume = read_image(save(tmp_path / "a.nii.gz", ramp, LIP, sform=2))
    assert volume.axes == "LIP"
    assert volume.spacing_mm == pytest.approx((0.8, 0.9, 0.7))
    assert volume.data.dtype == np.float32
    assert np.array_equal(volume.data, ramp)
    assert (volume.qform_code, volume.sform_code, volume.dtype) == (0, 2, "float32")


def test_qform_only_and_sform_first(tmp_path: Path, save: Save, ramp: Any) -> None:
    assert read_image(save(tmp_path / "q.nii", ramp, LIP, qform=1, sform=0)).axes == "LIP"
    image = nib.Nifti1Image(ramp, np.eye(4))
    image.set_sform(LIP, 1)
    image.set_qform(np.eye(4), 1)
    image.to_filename(tmp_path / "both.nii")
    both = read_image(tmp_path / "both.nii")
    assert both.axes == "LIP"
    assert not both.forms_agree


def test_no_orientation(tmp_path: Path, save: Save, ramp: Any) -> None:
    path = save(tmp_path / "none.nii.gz", ramp, qform=0, sform=0)
    assert "neither qform nor sform is set" in _refused(read_image, path)


def test_singular_affine(tmp_path: Path, save: Save, ramp: Any) -> None:
    image = nib.Nifti1Image(ramp, np.eye(4))
    image.header["sform_code"] = 1
    image.header["srow_z"] = 0
    image.header["qform_code"] = 0
    image._affine = None
    (tmp_path / "flat.nii").write_bytes(image.to_bytes())
    assert "the affine is singular" in _refused(read_image, tmp_path / "flat.nii")


def test_4d(tmp_path: Path, save: Save, ramp: Any) -> None:
    assert read_image(save(tmp_path / "one.nii", ramp[..., None])).data.shape == (4, 5, 6)
    message = _refused(read_image, save(tmp_path / "two.nii", np.stack([ramp, ramp], axis=-1)))
    assert "the image is 4D, 4 x 5 x 6 x 2: one 3D volume is needed" in message
    assert "the image is 2D" in _refused(read_image, save(tmp_path / "flat.nii", ramp[0]))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity(tmp_path: Path, save: Save, ramp: Any, bad: float) -> None:
    ramp[1, 2, 3] = bad
    assert "1 of 120 voxels are NaN or infinite" in _refused(read_image, save(tmp_path / "nan.nii", ramp))


def test_float64_beyond_float32_is_infinite(tmp_path: Path, save: Save, ramp: Any) -> None:
    huge = ramp.astype(np.float64) * 1e300
    assert "NaN or infinite" in _refused(read_image, save(tmp_path / "huge.nii", huge))


def test_constant_image(tmp_path: Path, save: Save) -> None:
    path = save(tmp_path / "flat.nii", np.full((3, 3, 3), 7, np.int16))
    assert "every voxel has the value 7" in _refused(read_image, path)


@pytest.mark.parametrize("keep", [0.1, 0.6, 0.99])
def test_truncated(tmp_path: Path, save: Save, keep: float) -> None:
    data = np.random.default_rng(1).normal(size=(20, 20, 20)).astype(np.float32)
    path = save(tmp_path / "cut.nii.gz", data)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    assert "cut short or damaged: copy or export it again" in _refused(read_image, path)
    plain = tmp_path / "cut.nii"
    plain.write_bytes(gzip.decompress(whole)[: int(keep * 32352)])
    assert "cut short or damaged: copy or export it again" in _refused(read_image, plain)


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    assert "there is no such file" in _refused(read_image, tmp_path / "no.nii")
    (tmp_path / "annexed.nii").symlink_to(tmp_path / "gone")
    assert "datalad get" in _refused(read_image, tmp_path / "annexed.nii")
    (tmp_path / "text.nii").write_text("not an image")
    assert "not a readable NIfTI file" in _refused(read_image, tmp_path / "text.nii")
    nib.MGHImage(np.zeros((2, 2, 2), np.float32), np.eye(4)).to_filename(tmp_path / "a.mgz")
    assert "MGHImage, not NIfTI" in _refused(read_image, tmp_path / "a.mgz")
    rgb = np.zeros((2, 2, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.Nifti1Image(rgb, np.eye(4)).to_filename(tmp_path / "rgb.nii")
    assert "are not grey values" in _refused(read_image, tmp_path / "rgb.nii")


def _claims(path: Path, shape: tuple[int, int, int]) -> Path:
    """A header that claims a shape, and hardly any voxels."""
    image = nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4))
    content = bytearray(image.to_bytes())
    content[40:48] = np.array([3, *shape], "<i2").tobytes()
    path.write_bytes(gzip.compress(bytes(content)))
    return path


@pytest.mark.parametrize("shape", [(30000, 30000, 30000), (1025, 4, 4), (1024, 1024, 513)])
@pytest.mark.parametrize("read", [read_image, read_labels, read_header])
def test_a_small_file_that_claims_to_be_huge(
    tmp_path: Path, read: Callable[[Path], object], shape: tuple[int, int, int]
) -> None:
    path = _claims(tmp_path / "huge.nii.gz", shape)
    assert path.stat().st_size < 500
    message = _refused(read, path)
    assert f"the header says {' x '.join(map(str, shape))} voxels: more than 1024 a side or 2^29 in all" in message
    assert "the header is damaged, export it again" in message


@pytest.mark.parametrize("shape", [(512, 512, 512), (1024, 1024, 60), (1024, 1024, 512)])
def test_large_scans_and_stacks_are_not_held_for_damaged(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    assert read_header(_claims(tmp_path / "large.nii.gz", shape)).shape == shape


def test_too_little_memory(tmp_path: Path, save: Save, ramp: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: object, **__: object) -> Any:
        raise MemoryError

    path = save(tmp_path / "a.nii.gz", ramp)
    with monkeypatch.context() as patch:
        patch.setattr(nib.arrayproxy.ArrayProxy, "__array__", no_room)
        message = _refused(read_image, path)
        assert "there is not enough memory for its 4 x 5 x 6 voxels (close other programs" in message
    monkeypatch.setattr(nib, "load", no_room)
    assert "this is not a readable NIfTI file" in _refused(read_image, path)


def test_labels(tmp_path: Path, save: Save, ramp: Any) -> None:
    volume = read_labels(save(tmp_path / "float.nii", ramp))
    assert volume.data.dtype == np.int32
    assert np.array_equal(volume.data, ramp)
    big = np.full((2, 2, 2), 2**24 + 1, np.int32)
    assert read_labels(save(tmp_path / "big.nii", big)).data[0, 0, 0] == 2**24 + 1
    message = _refused(read_labels, save(tmp_path / "soft.nii", ramp + 0.3))
    assert "label values must be whole numbers" in message
    assert "nearest neighbour" in message
    assert "label values run from -1 to 118" in _refused(read_labels, save(tmp_path / "minus.nii", ramp - 1))


@pytest.mark.parametrize("codes", [(1, 0), (0, 2), (2, 1), (1, 4)])
@pytest.mark.parametrize("extension", [".nii", ".nii.gz"])
def test_written_labels_lie_on_the_source_grid(
    tmp_path: Path, save: Save, ramp: Any, codes: tuple[int, int], extension: str
) -> None:
    qform, sform = codes
    source = save(tmp_path / "source.nii.gz", ramp, LIP, qform=qform, sform=sform)
    labels = (ramp % 8).astype(np.uint8)
    write_labels_like(labels, source, tmp_path / f"out{extension}")
    first, second = nib.load(source), nib.load(tmp_path / f"out{extension}")
    assert np.array_equal(first.affine, second.affine)
    for form in ("get_qform", "get_sform"):
        (one, code), (other, other_code) = (getattr(each.header, form)(coded=True) for each in (first, second))
        assert code == other_code
        assert (one is None and other is None) or np.array_equal(one, other)
    assert second.get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(second.dataobj), labels)
    assert np.array_equal(read_labels(tmp_path / f"out{extension}").data, labels)


def test_nothing_that_identifies_is_written(tmp_path: Path, save: Save, ramp: Any) -> None:
    image = nib.Nifti1Image(ramp, LIP)
    for field in ("descrip", "aux_file", "db_name", "intent_name"):
        image.header[field] = b"Mia Muster"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Mia Muster, 1.1.1990"))
    image.to_filename(tmp_path / "named.nii")
    write_labels_like(ramp.astype(np.uint8), tmp_path / "named.nii", tmp_path / "out.nii")
    assert b"Muster" in (tmp_path / "named.nii").read_bytes()
    assert b"Muster" not in (tmp_path / "out.nii").read_bytes()


def test_singleton_shape_is_kept(tmp_path: Path, save: Save, ramp: Any) -> None:
    source = save(tmp_path / "one.nii", ramp[..., None])
    write_labels_like(ramp.astype(np.uint8), source, tmp_path / "out.nii")
    assert nib.load(tmp_path / "out.nii").shape == (4, 5, 6, 1)


def test_write_refuses_other_shapes_names_and_folders(tmp_path: Path, save: Save, ramp: Any) -> None:
    source = save(tmp_path / "s.nii", ramp)
    with pytest.raises(DataError, match="don't lie on the grid"):
        write_labels_like(np.zeros((4, 5, 5), np.uint8), source, tmp_path / "o.nii")
    with pytest.raises(DataError, match=r"written as \.nii or \.nii\.gz"):
        write_labels_like(np.zeros((4, 5, 6), np.uint8), source, tmp_path / "o.mha")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        write_labels_like(np.zeros((4, 5, 6), np.uint8), source, tmp_path / "file" / "o.nii")


def test_write_whole_leaves_no_halves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "a", b"one")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600

    def no_room(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(StorageError, match="No space left on device"):
        write_whole(tmp_path / "a", b"two")
    assert (tmp_path / "a").read_bytes() == b"one"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_same_grid_tolerates_rounding_only() -> None:
    off = LIP.copy()
    off[0, 3] += 1e-6
    assert same_grid(LIP, off, (10, 10, 10), tolerance=0.1)
    off[0, 3] += 0.2
    assert not same_grid(LIP, off, (10, 10, 10), tolerance=0.1)


def test_a_quaternion_that_rounding_made_too_long_hides_no_form(tmp_path: Path, save: Save, ramp: Any) -> None:
    turned = np.array([[0, 0.8, 0, 1], [0.8, 0, 0, 2], [0, 0, -0.8, 3], [0, 0, 0, 1.0]])
    image = nib.load(save(tmp_path / "good.nii", ramp, turned, qform=1, sform=1))
    header = image.header.copy()
    for name in ("quatern_b", "quatern_c"):
        header[name] = 0.70715
    nib.Nifti1Image(ramp, None, header).to_filename(tmp_path / "long.nii")
    found = read_header(tmp_path / "long.nii")
    np.testing.assert_array_equal(found.affine, read_header(tmp_path / "good.nii").affine)
    assert found.forms_agree and found.qform_code == 1
    write_labels_like(np.zeros((4, 5, 6), np.uint8), tmp_path / "long.nii", tmp_path / "out.nii")
    nib.load(tmp_path / "out.nii").header.get_qform(coded=True)
    header["quatern_b"] = 0.9
    nib.Nifti1Image(ramp, None, header).to_filename(tmp_path / "wrong.nii")
    assert "the header's orientation cannot be read" in _refused(read_header, tmp_path / "wrong.nii")


def test_a_sheared_voxel_is_smaller_than_its_edges_say(tmp_path: Path, save: Save, ramp: Any) -> None:
    angle = np.radians(15)
    sheared = np.diag([0.8, 0.8, 0.8, 1.0])
    sheared[:3, 1] = 0.8 * np.array([np.sin(angle), np.cos(angle), 0])
    volume = read_header(save(tmp_path / "a.nii", ramp, sheared))
    assert volume.spacing_mm == pytest.approx((0.8, 0.8, 0.8))
    assert volume.voxel_mm3 == pytest.approx(0.8**3 * np.cos(angle), rel=1e-5)
    assert read_header(save(tmp_path / "b.nii", ramp, LIP)).voxel_mm3 == pytest.approx(0.8 * 0.7 * 0.9)


@pytest.mark.parametrize("name", ["o.nii", "o.nii.gz"])
def test_results_are_closed_to_others_at_every_moment(
    name: str, tmp_path: Path, save: Save, ramp: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, modes, fsync = save(tmp_path / "s.nii", ramp), [], os.fsync

    def noting(handle: int) -> None:
        modes.append(os.fstat(handle).st_mode & 0o777)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noting)
    write_labels_like(np.zeros((4, 5, 6), np.uint8), source, tmp_path / name)
    write_maps_like([np.zeros((4, 5, 6), np.uint8)], source, tmp_path / f"m{name}")
    assert modes == [0o600, 0o600]
    assert {(tmp_path / each).stat().st_mode & 0o777 for each in (name, f"m{name}")} == {0o600}
