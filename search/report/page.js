// Draws each figure's specification, in the colours of the window's scheme. What a reader picks in
// one chart, or by the buttons, filters the other charts and the tables.
const themes = JSON.parse(document.getElementById("themes").textContent);
const darkness = window.matchMedia("(prefers-color-scheme: dark)");
const ALL = { all: true, sizes: [], cells: [], trials: [] };
const SELECTIONS = ["pick_size", "pick_cell", "pick_lines"]; // of Vega-Lite, in the charts that have them
let picked = ALL;
let pickedIn = null; // the view in which it was picked

async function draw() {
  const scheme = darkness.matches ? "dark" : "light";
  const config = themes[scheme];
  for (const place of document.querySelectorAll(".chart")) {
    if (place.dataset.drawn === scheme) continue;
    const spec = JSON.parse(document.getElementById(place.dataset.spec).textContent);
    const options = {
      config: { ...config, background: "transparent", autosize: { type: "fit-x", contains: "padding" } },
      renderer: "svg",
      tooltip: { theme: scheme },
      actions: { export: true, source: false, compiled: false, editor: false },
      downloadFileName: place.dataset.name,
    };
    try {
      link(place, (await vegaEmbed(place, spec, options)).view, spec);
      place.dataset.drawn = scheme;
    } catch (error) {
      place.textContent = "This chart could not be drawn: " + error.message;
      console.error(error);
    }
  }
  apply();
  document.body.dataset.drawn = "yes";
}

// A chart with the parameter `picked` follows, and one with a selection leads.
function link(place, view, spec) {
  const signals = view.getState({ signals: () => true, data: () => false }).signals;
  if (!("picked" in signals)) return;
  place.view = view;
  for (const name of SELECTIONS.filter((name) => name in signals)) {
    view.addSignalListener(name, (_, value) => {
      const next = READERS[name](value, spec);
      if (next) show(next, view);
      else if (pickedIn === view) show(ALL, view);
    });
  }
}

// What a selection's value picks, or null if it is empty.
const READERS = {
  pick_size: (value) => value.batch_size?.length && of(value.batch_size.map((size) => [size])),
  pick_cell: (value) => value.vlPoint?.or.length && of(value.vlPoint.or.map((row) => [row.batch_size, row.lr])),
  pick_lines: (value, spec) => {
    if (!value.field?.length || !value.height) return null;
    const rows = spec.datasets[spec.layer[0].data.name];
    const [low, high] = [...value.height].sort((a, b) => a - b);
    const inside = (field) =>
      new Set(rows.filter((r) => r.field === field && r.height >= low && r.height <= high).map((r) => r.trial));
    const trials = value.field.map(inside).reduce((one, other) => new Set([...one].filter((t) => other.has(t))));
    const first = rows.filter((row) => row.field === value.field[0] && trials.has(row.trial));
    if (!first.length) return null;
    return { ...of(first.map((row) => [row.batch_size, row.lr])), trials: first.map((row) => row.trial) };
  },
};

function of(pairs) {
  const cells = pairs.filter(([, lr]) => lr !== undefined).map(([size, lr]) => `${size}|${lr}`);
  return { all: false, sizes: [...new Set(pairs.map(([size]) => size))], cells: [...new Set(cells)], trials: [] };
}

function show(next, view = null) {
  picked = next;
  pickedIn = view;
  apply();
}

function apply() {
  for (const { view } of document.querySelectorAll(".chart")) {
    if (!view) continue;
    if (view !== pickedIn)
      for (const name of SELECTIONS) {
        try {
          view.data(`${name}_store`, []);
        } catch {} // this chart has no such selection
      }
    view.signal("picked", picked).runAsync();
  }
  for (const row of document.querySelectorAll("tr[data-size]")) {
    const { size, lr } = row.dataset;
    const isOfCell = !picked.cells.length || lr === undefined || picked.cells.includes(`${+size}|${+lr}`);
    row.hidden = !picked.all && !(picked.sizes.includes(+size) && isOfCell);
  }
  const pressed = picked.all ? [""] : picked.cells.length ? [] : picked.sizes.map(String);
  for (const button of document.querySelectorAll(".picker button"))
    button.setAttribute("aria-pressed", String(pressed.includes(button.dataset.size)));
  const status = document.querySelector(".picked");
  if (status) status.textContent = words(picked);
}

function words({ all, sizes, cells, trials }) {
  if (all) return "";
  const what = trials.length
    ? `${trials.length} trial${trials.length > 1 ? "s" : ""}`
    : cells.length
      ? `${cells.length} setting${cells.length > 1 ? "s" : ""}`
      : `batch size ${sizes.join(", ")}`;
  return `Charts and tables show ${what}; Esc shows all.`;
}

document.addEventListener("click", (event) => {
  const size = event.target.closest?.(".picker button")?.dataset.size;
  if (size !== undefined) show(size === "" ? ALL : of([[+size]]));
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !picked.all) show(ALL);
});
darkness.addEventListener("change", draw);
draw();
