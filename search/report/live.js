// Keeps a served page as new as the study: what runs now each time, the report where it changed.
const PERIOD_MS = 2000;
const OWN_DETAILS = "#report details:not(.vega-embed details)"; // Vega has menus of that kind
let version = document.body.dataset.version;

async function follow() {
  try {
    const now = await (await fetch("now", { cache: "no-store" })).json();
    document.getElementById("now").innerHTML = now.html;
    document.body.classList.remove("lost");
    if (version && now.version !== version) await renew();
    version = now.version;
  } catch (error) {
    document.body.classList.add("lost"); // the server has ended: the page stays as it was
  }
  setTimeout(follow, PERIOD_MS);
}

// Puts the new report in place of the old one. Charts that stay the same are kept as they are.
async function renew() {
  const html = await (await fetch("./", { cache: "no-cache" })).text();
  const next = new DOMParser().parseFromString(html, "text/html");
  const opened = [...document.querySelectorAll(`${OWN_DETAILS}[open] > summary`)].map((s) => s.textContent);
  const kept = new Map();
  for (const script of next.querySelectorAll('script[id^="spec-"]')) {
    const old = document.getElementById(script.id);
    const place = document.querySelector(`.chart[data-spec="${CSS.escape(script.id)}"]`);
    if (old?.textContent === script.textContent && place) kept.set(script.id, place);
    else if (old) old.textContent = script.textContent;
    else document.body.append(document.importNode(script, true));
  }
  for (const name of ["header", "#report"]) {
    const place = document.querySelector(name);
    place.replaceChildren(...next.querySelector(name).childNodes);
  }
  for (const place of document.querySelectorAll(".chart"))
    if (kept.has(place.dataset.spec)) place.replaceWith(kept.get(place.dataset.spec));
  for (const summary of document.querySelectorAll(`${OWN_DETAILS} > summary`))
    summary.parentElement.open = opened.includes(summary.textContent);
  await draw();
}

follow();
