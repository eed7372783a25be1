// Draws each figure's specification, in the colours of the window's scheme.
const themes = JSON.parse(document.getElementById("themes").textContent);
const darkness = window.matchMedia("(prefers-color-scheme: dark)");

async function draw() {
  const config = themes[darkness.matches ? "dark" : "light"];
  for (const place of document.querySelectorAll(".chart")) {
    const spec = JSON.parse(document.getElementById(place.dataset.spec).textContent);
    const options = {
      config: { ...config, background: "transparent", autosize: { type: "fit-x", contains: "padding" } },
      renderer: "svg",
      tooltip: { theme: darkness.matches ? "dark" : "light" },
      actions: { export: true, source: false, compiled: false, editor: false },
      downloadFileName: place.dataset.name,
    };
    try {
      await vegaEmbed(place, spec, options);
      place.dataset.drawn = "yes";
    } catch (error) {
      place.textContent = "This chart could not be drawn: " + error.message;
      console.error(error);
    }
  }
  document.body.dataset.drawn = "yes";
}

darkness.addEventListener("change", draw);
draw();
