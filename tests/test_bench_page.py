"""The page of a report in a real browser: it draws, sorts, filters, fits a phone, and asks nobody for anything."""

import pytest

import results
from browser import Browser, executable
from leanconv.bench.page import render

pytestmark = pytest.mark.skipif(executable() is None, reason="no chromium, chromium-browser or google-chrome is here")

EVIL = "</script><script>window.evil=1</script><!-- \u2028\u2029 <img src=x onerror=window.evil=2> \"'&amp;"


@pytest.fixture(scope="module")
def browser():
    with Browser() as found:
        yield found


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    report = results.results(("mec", "resnet18", "mobilenet_v2"), layouts=("NHWC", "NCHW"))
    path.write_text(render(report), encoding="utf-8")
    return path


@pytest.fixture
def opened(browser, page):
    """The page in a wide window; afterwards nothing may have gone wrong in it."""
    browser.console.clear(), browser.errors.clear(), browser.requests.clear()
    browser.open(page)
    yield browser
    assert browser.errors == [] and browser.console == []
    assert browser.requests == [page.resolve().as_uri()]


def column(browser, table, name):
    """Return the words of a table's column."""
    return browser.evaluate(
        f"""(() => {{
        const head = [...document.querySelectorAll('#{table} thead th')];
        const at = head.findIndex((th) => th.textContent === '{name}');
        return [...document.querySelectorAll('#{table} tbody tr')].map((tr) => tr.children[at].textContent.trim());
        }})()"""
    )


def click(browser, selector, words=None):
    """Click the first element that a selector finds, or the first of these with some words."""
    found = f"[...document.querySelectorAll({selector!r})]"
    if words is not None:
        found += f".filter((e) => e.textContent === {words!r})"
    assert browser.evaluate(f"(() => {{ const [e] = {found}; e?.click(); return Boolean(e); }})()"), (selector, words)


def search(browser, words):
    browser.evaluate(f"""(() => {{ const field = document.getElementById('filter');
        field.value = {words!r}; field.dispatchEvent(new Event('input')); }})()""")


def choose(browser, name, value):
    browser.evaluate(
        f"(() => {{ const s = document.getElementById('{name}'); s.value = {value!r}; "
        "if (s.selectedIndex < 0) throw Error('no such choice'); s.dispatchEvent(new Event('change')); })()"
    )


def count(browser, selector):
    return browser.evaluate(f"document.querySelectorAll({selector!r}).length")


def test_everything_is_drawn(opened):
    assert opened.evaluate("document.documentElement.dataset.ready") == "yes"
    assert count(opened, "#summary tbody tr") == 26
    assert count(opened, "#scatter .point") > 10
    assert count(opened, "#bars h3") == 4
    assert count(opened, "#roofline .point") == 53
    assert count(opened, "#matrix tbody tr") == 53
    assert count(opened, "#rows tbody tr") == 300
    assert "Example CPU" in opened.evaluate("document.getElementById('facts').textContent")


def test_labels_of_a_chart_do_not_overlap(opened):
    overlaps = """(() => {
        const boxes = [...document.querySelectorAll('ID .halo')].map((t) => t.getBoundingClientRect());
        return boxes.flatMap((a, i) => boxes.slice(i + 1).filter((b) =>
          a.left + 1 < b.right && a.right - 1 > b.left && a.top + 3 < b.bottom && a.bottom - 3 > b.top)).length;
        })()"""
    for width in (1280, 360):
        opened.send(
            *("Emulation.setDeviceMetricsOverride",),
            **{"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
        )
        opened.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        for chart in ("#scatter", "#roofline"):
            assert count(opened, f"{chart} .halo") > 2
            assert opened.evaluate(overlaps.replace("ID", chart)) == 0, (width, chart)


def test_columns_sort_both_ways(opened):
    def times():
        words, layers = column(opened, "summary", "time / best"), column(opened, "summary", "layers")
        whole = [layer == "53 of 53" for layer in layers]
        assert whole == sorted(whole, reverse=True) and not all(whole)  # who misses layers stands below
        return [float(word) for word, all_layers in zip(words, whole, strict=True) if all_layers]

    assert times() == sorted(times())
    click(opened, "#summary thead button", "time / best")
    assert times() == sorted(times(), reverse=True)
    head = "document.querySelector('#summary th[aria-sort]')"
    assert opened.evaluate(f"{head}.getAttribute('aria-sort') + {head}.textContent") == "descendingtime / best"
    click(opened, "#summary thead button", "contestant")
    names = column(opened, "summary", "contestant")
    assert names == sorted(names, key=str.lower) and len(names) == 26


def test_what_has_no_value_stays_below(opened):
    for _ in range(2):
        click(opened, "#summary thead button", "total time")
        words = column(opened, "summary", "total time")
        assert words[-1] == "\u2013" and words[0] != "\u2013"


def test_the_keyboard_sorts_and_keeps_its_place(opened):
    opened.evaluate("document.querySelectorAll('#rows thead button')[2].focus()")
    opened.press("Enter")
    assert opened.evaluate("document.activeElement.textContent") == "time"
    assert opened.evaluate("document.activeElement.closest('th').getAttribute('aria-sort')") == "ascending"
    opened.press("Enter")
    assert opened.evaluate("document.activeElement.closest('th').getAttribute('aria-sort')") == "descending"


def test_rows_filter(opened):
    search(opened, "LITERT cv1")
    assert column(opened, "rows", "contestant") == ["litert"] * 4  # cv1, cv10, cv11, cv12
    search(opened, "")
    choose(opened, "which", "failed")
    assert set(column(opened, "rows", "time")) == {"wrong result"}
    assert "allowed" in column(opened, "rows", "reason")[0]
    choose(opened, "which", "best")
    assert set(column(opened, "rows", "time / best")) == {"1.00"} and count(opened, "#rows tbody tr") == 53
    choose(opened, "which", "all")
    click(opened, "#rows .more button")
    assert count(opened, "#rows tbody tr") == 26 * 53


def test_threads_sets_and_contestants(opened):
    first = column(opened, "summary", "total time")
    click(opened, "#threads input[value='2']")
    assert column(opened, "summary", "total time") != first and count(opened, "#summary tbody tr") == 25
    choose(opened, "set", "mec")
    assert count(opened, "#matrix tbody tr") == 12 and count(opened, "#bars h3") == 1
    assert count(opened, "#layer option") == 13
    click(opened, "#legend .chips button", "none")
    assert set(column(opened, "summary", "contestant")) <= {contestant for contestant in results.PEERS}
    click(opened, "#legend .chips button:nth-of-type(2)")
    assert opened.evaluate("document.querySelector('#legend summary').textContent") == "Contestants: 10 of 26"


def test_nothing_chosen_is_said(opened):
    for group in (0, 1):
        opened.evaluate(f"document.querySelectorAll('#legend strong')[{group}].lastChild.click()")
    for place in ("scatter", "bars", "roofline"):
        assert "Nothing was measured here" in opened.evaluate(f"document.getElementById('{place}').textContent")


def test_layers_are_picked_and_the_front_is_right(opened):
    assert "mec/cv1," in opened.evaluate("document.querySelector('#scatter figcaption').textContent")
    click(opened, "#previous")
    assert opened.evaluate("document.getElementById('layer').value") == "all"
    click(opened, "#next")
    click(opened, "#next")
    caption = opened.evaluate("document.querySelector('#scatter figcaption').textContent")
    assert caption.startswith("mec/cv2, 1x3x231x231 > 96 k11x11 s4 p0; 1 thread. On the front: ")
    front = opened.evaluate(
        """(() => { const of = results.filter((r) => r.layer === 1 && r.threads === 1 && r.memory !== null);
        return of.filter((r) => !of.some((o) => o !== r && o.memory <= r.memory && o.seconds <= r.seconds))
          .sort((a, b) => a.memory - b.memory).map((r) => contestants[r.contestant].label).join(', '); })()"""
    )
    assert caption.split("On the front: ")[1] == f"{front}."


def test_points_explain_themselves_on_focus(opened):
    opened.evaluate("document.querySelector('#scatter .point').focus()")
    words = opened.evaluate("document.getElementById('tip').innerText")
    assert "of the fastest" in words and "mec/cv1" in words
    opened.press("Escape")
    assert opened.evaluate("document.getElementById('tip').hidden")


@pytest.mark.parametrize("width", [320, 360, 400, 768])
def test_small_windows_have_no_overflow(browser, page, width):
    browser.open(page, width=width, height=700)
    browser.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("innerWidth") == width
    # Tables are wider and scroll on their own.
    assert browser.evaluate(
        "(() => { const t = document.getElementById('rows'); return t.scrollWidth > t.clientWidth; })()"
    )
    outside = """[...document.querySelectorAll('main svg text')].filter((t) => {
        const box = t.getBoundingClientRect(); return box.left < -1 || box.right > innerWidth + 1; }).length"""
    assert browser.evaluate(outside) == 0


@pytest.mark.parametrize("dark", [False, True])
def test_words_have_contrast(browser, page, dark):
    browser.open(page, dark=dark)
    assert browser.evaluate("document.documentElement.dataset.theme") == ("dark" if dark else "light")
    low = browser.evaluate(
        """(() => {
        const paint = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
        const light = (colour) => {
          paint.fillStyle = colour; paint.fillRect(0, 0, 1, 1);
          const [r, g, b] = [...paint.getImageData(0, 0, 1, 1).data].slice(0, 3).map((v) => v / 255)
            .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
          return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const style = getComputedStyle(document.documentElement);
        const of = (name) => light(style.getPropertyValue(name));
        const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        const wrong = [];
        for (const ground of ['--bg', '--card']) {
          for (const name of ['--ink', '--soft', '--accent', '--best', '--bad', '--warn']) {
            if (ratio(of(name), of(ground)) < 4.5) wrong.push([name, ground, ratio(of(name), of(ground))]);
          }
          for (let i = 0; i < 10; i += 1) if (ratio(of(`--c${i}`), of(ground)) < 3) wrong.push([i, ground]);
        }
        return wrong; })()"""
    )
    assert low == []


def test_controls_have_names(opened):
    nameless = """[...document.querySelectorAll('button, select, input')].filter((e) =>
        !e.textContent.trim() && !e.getAttribute('aria-label') && !(e.labels?.length && e.labels[0].textContent.trim()))
        .map((e) => e.outerHTML)"""
    assert opened.evaluate(nameless) == []
    assert count(opened, "main svg:not([aria-label]):not([aria-hidden])") == 0


def test_the_theme_changes(opened):
    before = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    click(opened, "#theme")
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") != before


def test_names_are_text(browser, tmp_path):
    report = results.results(("mec",), most=2, threads=(1,))
    report.machine["cpu"] = report.versions["leanconv"] = EVIL
    report.command = [EVIL]
    report.layers[0]["name"] = f"{EVIL}/{EVIL}"
    for row in report.rows:
        row.layer = row.layer.replace("mec/cv1", f"{EVIL}/{EVIL}")
        row.algorithm += EVIL
        row.reason += EVIL if row.status != "ok" else ""
        row.version = EVIL if row.kind == "peer" else ""
    path = tmp_path / "evil.html"
    path.write_text(render(report), encoding="utf-8")
    browser.console.clear(), browser.errors.clear(), browser.requests.clear()
    browser.open(path, width=360, height=700)
    assert browser.evaluate("window.evil") is None
    assert browser.errors == [] and browser.console == [] and len(browser.requests) == 1
    assert count(browser, "img") == 0 and count(browser, "script") == 2
    assert column(browser, "rows", "layer")[0] == f"{EVIL}/{EVIL}"
    assert browser.evaluate("document.documentElement.scrollWidth") <= 360


def test_results_of_little(browser, tmp_path):
    report = results.results(("mb1ic4ih6oc6kh3ph1nsmall",), threads=(1,), peers=False, rounds=1)
    report.bandwidth, report.rows = [], report.rows[:1]
    path = tmp_path / "little.html"
    path.write_text(render(report), encoding="utf-8")
    browser.errors.clear(), browser.console.clear()
    browser.open(path)
    assert browser.errors == [] and browser.console == []
    assert count(browser, "#scatter .point") == 1 and count(browser, "#roofline .point") == 1
    assert "was not measured" in browser.evaluate("document.querySelector('#roofline figcaption').textContent")
    assert browser.evaluate("document.getElementById('set').parentElement.hidden")
