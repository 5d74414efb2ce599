"""Videos as a breaker would make them: each is read frame by frame, or refused in one line that names the file and the reason."""

from fractions import Fraction

import av
import numpy as np
import pytest

from pevl.data.video import VideoError, open_video

try:
    import decord  # noqa: F401

    BACKENDS = ["pyav", "decord", "auto"]
except ImportError:
    BACKENDS = ["pyav", "auto"]
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def numbered(n, h=64, w=96):
    "(n, h, w, 3) uint8: frame i shows i in binary, as eight black or white columns, so that a wrong frame is not taken for a right one"
    bits = np.arange(n)[:, None] >> np.arange(8) & 1
    columns = np.repeat(bits * 235, -(-w // 8), 1)[:, :w]
    return np.broadcast_to(columns[:, None, :, None], (n, h, w, 3)).astype(np.uint8)


def numbers(frames):
    "The numbers that uint8 (n, 3, h, w) show; the inverse of `numbered`"
    w = frames.shape[-1]
    at = np.arange(8) * -(-w // 8) + -(-w // 8) // 2
    return ((frames.numpy().mean((1, 2))[:, at] > 128) << np.arange(8)).sum(1).tolist()


def write(path, frames, codec="libx264", pixels="yuv420p", fps=30, times=None, options=None, **container):
    "Encode with PyAV; `times` are time stamps in milliseconds"
    with av.open(str(path), "w", **container) as box:
        stream = box.add_stream(codec, rate=fps, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = int(times[i]), Fraction(1, 1000)
            box.mux(stream.encode(frame))
        box.mux(stream.encode(None))
    return path


def turned(path, target):
    "The same mp4 with a quarter turn clockwise in its display matrix, as a phone writes it"
    data = bytearray(path.read_bytes())
    at = data.find(b"tkhd") + 44
    width, height = data[at + 36 : at + 40], data[at + 40 : at + 44]
    data[at : at + 36] = b"".join(
        v.to_bytes(4, "big", signed=True) for v in (0, 1 << 16, 0, -1 << 16, 0, 0, 64 << 16, 0, 1 << 30)
    )
    assert (width, height) == ((96 << 16).to_bytes(4, "big"), (64 << 16).to_bytes(4, "big")), (
        "not a display matrix"
    )
    target.write_bytes(data)
    return target


def refused(path, backend, *words):
    "One line that begins with the path and holds one of `words`; an AssertionError if anything is decoded"
    with pytest.raises(ValueError) as caught, open_video(path, backend) as video:
        video.get(range(video.num_frames))
    text = str(caught.value)
    assert isinstance(caught.value, VideoError)
    assert text.startswith(f"{path}: ") and "\n" not in text and len(text) > len(f"{path}: ") + 5, text
    assert not words or any(word in text for word in words), text
    return text


def read_all(path, backend):
    with open_video(path, backend) as video:
        frames = video.get(range(video.num_frames))
        assert tuple(frames.shape) == (video.num_frames, 3, video.height, video.width)
        return frames, video.fps


FILM = numbered(40)
GREY, HIGH = "gray", "yuv420p10le"
UNUSUAL = {  # name -> (frames, how to write them)
    "one_frame.mp4": (FILM[:1], {}),
    "one_frame.mkv": (FILM[:1], {}),
    "two_frames.mp4": (FILM[:2], {}),
    "sixty_fps.mp4": (FILM, dict(fps=60)),
    "ntsc.mp4": (FILM, dict(fps=Fraction(30000, 1001))),
    "one_fps.mp4": (FILM[:10], dict(fps=1)),
    "only_key_frames.mp4": (FILM, dict(options={"g": "1"})),
    "one_key_frame.mp4": (FILM, dict(options={"g": "1000", "bf": "3"})),
    "open_gop.mp4": (FILM, dict(options={"x264-params": "open-gop=1:keyint=10:bframes=3"})),
    "flat.mp4": (numbered(12, 500, 3), dict(pixels="yuv444p")),
    "wide.mp4": (numbered(12, 3, 500), dict(pixels="yuv444p")),
    "odd.mp4": (numbered(12, 63, 95), dict(pixels="yuv444p")),
    "odd.mkv": (numbered(12, 63, 95), dict(codec="ffv1", pixels="bgr0")),
    "ten_bit.mp4": (FILM, dict(pixels=HIGH)),
    "ten_bit_444.mkv": (FILM, dict(codec="ffv1", pixels="yuv444p10le")),
    "grey.mp4": (FILM, dict(pixels=GREY)),
    "grey.mkv": (FILM, dict(codec="ffv1", pixels=GREY)),
    "full_range.mp4": (FILM, dict(pixels="yuvj420p")),
    "mpeg4.avi": (FILM, dict(codec="mpeg4")),
    "mpeg2.mpg": (FILM, dict(codec="mpeg2video")),
    "stream.ts": (FILM, {}),
    "jpegs.avi": (FILM, dict(codec="mjpeg", pixels="yuvj420p")),
    "vp9.webm": (FILM, dict(codec="libvpx-vp9", options={"cpu-used": "8"})),
    "live.mkv": (FILM, dict(container_options={"live": "1"}, options={"g": "10"})),
    "uneven.mp4": (FILM, dict(times=20 * np.arange(40) + np.arange(40) ** 2)),
    "uneven.mkv": (FILM, dict(times=20 * np.arange(40) + np.arange(40) ** 2)),
    "starts_late.mp4": (FILM, dict(times=5000 + 33 * np.arange(40))),
    "a_long_gap.mp4": (FILM, dict(times=33 * np.arange(40) + 60_000 * (np.arange(40) > 19))),
    "fragments.mp4": (
        FILM,
        dict(container_options={"movflags": "frag_keyframe+empty_moov"}, options={"g": "10"}),
    ),
}
NOT_FOR_DECORD = (
    "one_frame.mkv",
    "flat.mp4",
    "live.mkv",
    "stream.ts",
    "mpeg2.mpg",
)  # decord may refuse these, but never get them wrong
TINY = {"one_pixel": (1, 1), "row": (1, 500), "three_by_five": (3, 5)}


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    "Writes a film of UNUSUAL at its first use"
    folder = tmp_path_factory.mktemp("unusual")

    def film(name):
        path = folder / name
        return path if path.exists() else write(path, UNUSUAL[name][0], **UNUSUAL[name][1])

    return film


def read_or_refused_by_decord(path, backend, may_refuse):
    try:
        return read_all(path, backend)[0]
    except VideoError as e:
        if backend != "decord" or not may_refuse:
            raise
        assert "decord cannot" in str(e)
        pytest.skip("decord refuses it, auto reads it")


@each_backend
@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_but_sound(films, name, backend):
    frames, want = read_or_refused_by_decord(films(name), backend, name in NOT_FOR_DECORD), UNUSUAL[name][0]
    assert tuple(frames.shape) == (len(want), 3, *want.shape[1:3])
    if want.shape[2] >= 8:
        assert numbers(frames) == list(range(len(want)))
    else:
        assert abs(frames.permute(0, 2, 3, 1).numpy().astype(int) - want).mean() < 10


@each_backend
@pytest.mark.parametrize("name", TINY)
def test_tiny(tmp_path, name, backend):
    "Lossless frames of one grey each, down to a single pixel"
    h, w = TINY[name]
    greys = list(range(0, 240, 20))
    film = np.full((12, h, w, 3), np.array(greys)[:, None, None, None], np.uint8)
    path = write(tmp_path / f"{name}.mkv", film, codec="ffv1", pixels="bgr0")
    frames = read_or_refused_by_decord(path, backend, name == "one_pixel")
    assert (
        tuple(frames.shape) == (12, 3, h, w)
        and frames.flatten(1).float().mean(1).round().int().tolist() == greys
    )


@each_backend
def test_frame_rate(films, backend):
    assert read_all(films("sixty_fps.mp4"), backend)[1] == 60
    assert read_all(films("ntsc.mp4"), backend)[1] == pytest.approx(29.97, abs=0.01)


@each_backend
def test_turned(tmp_path, backend):
    "A phone's portrait film: shown upright, the columns become rows"
    path = turned(write(tmp_path / "flat.mp4", FILM), tmp_path / "upright.mp4")
    frames, _ = read_all(path, backend)
    assert tuple(frames.shape) == (40, 3, 96, 64)
    assert numbers(frames.rot90(1, (2, 3))) == list(range(40))


LARGE = {
    name: numbered(40, 320, 480) for name in ("a.mp4", "a.mkv", "a.avi", "a.ts", "a.mpg", "fragments.mp4")
}  # too large to be swept
ORDERS = [[39], [0, 39], [25, 3, 17, 3], [9, 11, 19, 21, 38]]


@pytest.mark.parametrize("name", LARGE)
def test_any_order(tmp_path, name):
    "Seeking finds the frame that was asked for, in every kind of file and from every position"
    how = {"a.avi": dict(codec="mpeg4"), "a.mpg": dict(codec="mpeg2video")}.get(
        name, dict(options={"g": "10", "preset": "ultrafast"})
    )
    if name == "fragments.mp4":
        how["container_options"] = {"movflags": "frag_keyframe+empty_moov"}
    path = write(tmp_path / name, LARGE[name], **how)
    for backend in BACKENDS:
        if backend == "decord" and name in ("a.ts", "a.mpg"):
            assert "decord" in refused(path, backend)
            continue
        with open_video(path, backend) as video:
            assert video.num_frames == 40
            assert [numbers(video.get(order)) for order in ORDERS] == ORDERS


SHORT_GOP = {"g": "10"}
CUTTABLE = {  # kinds of file that say how long they are
    "table_at_end.mp4": dict(options=SHORT_GOP),
    "table_in_front.mp4": dict(options=SHORT_GOP, container_options={"movflags": "+faststart"}),
    "fragments.mp4": dict(options=SHORT_GOP, container_options={"movflags": "frag_keyframe+empty_moov"}),
    "quicktime.mov": dict(options=SHORT_GOP),
    "matroska.mkv": dict(options=SHORT_GOP),
    "no_duration.mkv": dict(options=SHORT_GOP),
    "vp9.webm": dict(codec="libvpx-vp9", options={"cpu-used": "8"}),
    "mpeg4.avi": dict(codec="mpeg4"),
}


@pytest.mark.parametrize("name", CUTTABLE)
def test_truncated(tmp_path, name):
    "At whatever byte a download stopped: all frames, or one line; never a shorter film"
    data = write(tmp_path / name, FILM, **CUTTABLE[name]).read_bytes()
    if name == "no_duration.mkv":
        assert b"DURATION" in data
        data = data.replace(b"DURATION", b"NOTATION")
    n, whole, lines = len(data), [], 0
    places = [0, 1, 8, 64, 300, *(n * i // 11 for i in range(1, 11)), n - 100, n - 20, n - 1, n]
    for place in places:
        if data[place + 4 : place + 8] == b"moof":
            continue  # between two fragments: nothing in the file says that more was to come
        path = tmp_path / f"cut.{name.split('.')[1]}"
        path.write_bytes(data[:place])
        for backend in BACKENDS:
            try:
                frames, _ = read_all(path, backend)
            except VideoError:
                refused(
                    path, backend, "truncated", "cut off", "empty", "no frames", "damaged", "no video stream"
                )
                lines += 1
                continue
            assert numbers(frames) == list(range(40)), f"{name}: {place} of {n} bytes, {backend}"
            whole.append(place)
    assert whole.count(n) == len(BACKENDS), "the whole file is read"
    assert lines >= 11 * len(BACKENDS) and max([*whole, 0]) == n


def test_cut_stream_is_the_limit(tmp_path):
    "A transport stream promises nothing: what is left of it is read, in order and with no frame made up or repeated"
    data = write(tmp_path / "a.ts", FILM, options=SHORT_GOP).read_bytes()
    path = tmp_path / "cut.ts"
    for share in (0.3, 0.5, 0.9):
        path.write_bytes(data[: int(share * len(data))])
        seen = numbers(read_all(path, "auto")[0])
        assert 0 < len(seen) < 40 and seen == sorted(set(seen)) and seen[:5] == list(range(5))


def sound(path):
    with av.open(str(path), "w") as box:
        stream = box.add_stream("aac", rate=16000)
        hum = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        hum.sample_rate = 16000
        box.mux(stream.encode(hum))
        box.mux(stream.encode(None))


def header_only(path):
    with av.open(str(path), "w") as box:
        stream = box.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        box.start_encoding()


def without_table(path):
    "The moov box renamed: all the pictures are there, and nothing says where"
    data = write(path, FILM).read_bytes()
    assert data.count(b"moov") == 1
    path.write_bytes(data.replace(b"moov", b"junk"))


def zeros_inside(path):
    noise = np.random.default_rng(0).integers(0, 256, (20, 64, 96, 3), np.uint8)
    data = bytearray(write(path, noise).read_bytes())
    at = data.find(b"mdat") + len(data) // 3
    data[at : at + len(data) // 4] = bytes(len(data) // 4)  # several whole packets, inside the pictures
    assert at + len(data) // 4 < data.find(b"moov")
    path.write_bytes(data)


HOPELESS = {  # name -> (how to make it, words of which the line has one)
    "empty.mp4": (lambda p: p.touch(), ["empty (0 bytes)"]),
    "directory.mp4": (lambda p: p.mkdir(), ["is a directory"]),
    "missing.mp4": (lambda p: None, ["no such file"]),
    "dangling.mp4": (lambda p: p.symlink_to("nowhere.mp4"), ["no such file"]),
    "text.mp4": (lambda p: p.write_text("this is no video\n" * 100), ["not a video"]),
    "zeros.mp4": (lambda p: p.write_bytes(bytes(10_000)), ["not a video"]),
    "noise.mp4": (
        lambda p: p.write_bytes(np.random.default_rng(0).bytes(10_000)),
        ["not a video", "no video stream", "no frames", "damaged"],
    ),
    "archive.mp4": (lambda p: p.write_bytes(b"PK\x03\x04" + bytes(500)), ["not a video"]),
    "sound.mp4": (sound, ["no video stream"]),
    "sound.mkv": (sound, ["no video stream"]),
    "header.mp4": (header_only, ["no frames", "no video stream"]),
    "header.mkv": (header_only, ["no frames", "no video stream", "not a video"]),
    "no_table.mp4": (without_table, ["cut off before its index"]),
    "zeros_inside.mp4": (zeros_inside, ["damaged"]),
}


@pytest.mark.parametrize("name", HOPELESS)
def test_refused(tmp_path, capfd, name):
    make, words = HOPELESS[name]
    path = tmp_path / name
    make(path)
    for backend in BACKENDS:
        refused(path, backend, *words)
    out, err = capfd.readouterr()
    assert not out and not err, "a decoder's own complaints are not for the user"


@each_backend
def test_wrong_frame_numbers(films, backend):
    path = films("sixty_fps.mp4")
    with open_video(path, backend) as video:
        for wrong in ([40], [-1], [0, 1000]):
            with pytest.raises(VideoError, match="the video has frames 0..39"):
                video.get(wrong)
        assert tuple(video.get([]).shape) == (0, 3, 64, 96)
