"use strict";
// Draws every specification of the page. Axes and titles have the colour of the page around them
// (currentColor); what lies on marks follows the background, which is set anew for light, dark, print.
(async () => {
  const ink = "currentColor", faint = "#88888855";
  const config = {
    font: "system-ui, sans-serif",
    title: { color: ink, subtitleColor: ink, anchor: "start", fontSize: 13, subtitleFontSize: 11 },
    axis: {
      labelColor: ink, titleColor: ink, domainColor: faint, tickColor: faint, gridColor: faint,
      titleFontWeight: "normal",
    },
    legend: { labelColor: ink, titleColor: ink, titleFontWeight: "normal" },
    header: { labelColor: ink, titleColor: ink },
    view: { stroke: faint },
  };
  const nothing = () => Promise.reject(new Error("a report loads nothing"));
  const loader = { load: nothing, sanitize: nothing, http: nothing, file: nothing };
  const paper = () => getComputedStyle(document.body).backgroundColor;
  const views = [], failed = [];
  const recolour = (colour) => views.forEach((view) => view.background(colour).run());

  for (const box of document.querySelectorAll(".chart")) {
    const spec = JSON.parse(box.querySelector("script").textContent);
    const place = box.appendChild(document.createElement("div"));
    // One view fills the width there is; several keep theirs, and their box scrolls.
    const several = ["facet", "repeat", "hconcat", "vconcat", "concat"].some((key) => key in spec);
    if (!several && typeof spec.width === "number") {
      box.style.maxWidth = `${Math.max(spec.width * 1.6, 640)}px`;
      // Cells of a wide matrix hold text: on a narrow screen they scroll rather than overlap.
      if (spec.width > 500) place.style.minWidth = `${spec.width + 140}px`;
      spec.width = "container";
      spec.autosize = { type: "fit-x", contains: "padding" };
    }
    try {
      const { view } = await vegaEmbed(place, spec, {
        ast: true, // expressions are interpreted, never compiled: the page allows no eval
        actions: false,
        renderer: "svg",
        mode: "vega-lite",
        config: { ...config, background: paper() },
        loader,
      });
      views.push(view);
      box.dataset.drawn = "yes";
    } catch (problem) {
      failed.push(problem);
      place.textContent = `This chart could not be drawn: ${problem.message}. Its table is below.`;
    }
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => recolour(paper()));
  addEventListener("beforeprint", () => {
    recolour("white");
    // On paper nothing can be unfolded, and a verdict needs what it is to be compared with.
    for (const folded of document.querySelectorAll(".finding details")) folded.open = true;
  });
  addEventListener("afterprint", () => recolour(paper()));
  document.documentElement.dataset.drawn = failed.length ? "in part" : "yes";
  for (const problem of failed) console.error(problem);
})();
