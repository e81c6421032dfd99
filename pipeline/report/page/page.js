"use strict";
(() => {
  const NARROW_PX = 620, ROW_PX = 22, AROUND_PX = 130, LEGEND_PX = 19;
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const technique = document.getElementById("technique");
  const wide = matchMedia("(min-width: 901px)");
  const contents = document.getElementById("contents");
  contents.open = wide.matches;
  contents.addEventListener("click", (event) => {
    if (event.target.tagName === "A" && !wide.matches) contents.open = false;
  });

  // Cells without a value come last, whichever way the rest is sorted.
  const lastUnless = (compare) => (a, b) => (a === b ? 0 : a === "" ? 1 : b === "" ? -1 : compare(a, b));
  const words = new Intl.Collator("en", { numeric: true }).compare;
  const written = (cell) => String(cell).replace(/<[^>]*>/g, "").trim().replace(/^–$/, "");
  DataTable.type("number", {
    order: { asc: lastUnless((a, b) => a - b), desc: lastUnless((a, b) => b - a) },
  });
  DataTable.type("words", {
    order: { pre: written, asc: lastUnless(words), desc: lastUnless((a, b) => words(b, a)) },
  });

  const tables = [];
  for (const element of document.querySelectorAll(".table > table")) {
    if (element.tBodies[0]?.rows.length < 2) continue;
    const headings = [...element.tHead.rows[0].cells];
    const table = new DataTable(element, {
      paging: false,
      autoWidth: false,
      order: [],
      columnDefs: [
        { targets: "number", type: "number" },
        { targets: "_all", type: "words" },
      ],
      layout: { topStart: "search", topEnd: null, bottomStart: null, bottomEnd: null },
      language: { search: "Filter", zeroRecords: "No row has these words" },
    });
    tables.push({ table, column: headings.findIndex((cell) => cell.textContent.trim() === "Technique") });
  }

  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const matches = (name) => name.toLowerCase().includes(technique.value.trim().toLowerCase());

  function traces(view) {
    // Black is the reference's colour, and the colour of what is written: on a dark ground both are light.
    const json = JSON.stringify(view.traces);
    const shown = JSON.parse(dark.matches ? json.replace(/#000000|#333333|#444444/g, color("--ink")) : json);
    const wanted = technique.value && shown.some((trace) => matches(trace.name));
    for (const trace of shown) {
      trace.hovertemplate = "<b>%{fullData.name}</b><br>%{hovertext}<extra></extra>";
      if (wanted) trace.visible = matches(trace.name) ? true : "legendonly";
    }
    return shown;
  }

  function layout(view, width) {
    const narrow = width < NARROW_PX;
    const names = view.y.categoryarray && view.traces.length > 3 ? 0 : view.traces.length; // lines have names already
    const longest = Math.max(...view.traces.map((trace) => trace.name.length));
    const columns = Math.max(1, Math.floor(width / (7 * longest + 50)));
    const legend = names < 2 ? 0 : LEGEND_PX * Math.ceil(names / columns);
    const rows = view.y.categoryarray ? AROUND_PX + ROW_PX * view.y.categoryarray.length : 0;
    const plain = rows || 400;
    const below = { orientation: "h", yref: "container", y: 0, yanchor: "bottom" };
    Object.assign(below, { entrywidthmode: "fraction", entrywidth: 1 / columns, maxheight: legend + 20 });
    const axis = (found) => ({
      ...found,
      title: { text: found.title ?? "" },
      gridcolor: color("--grid"),
      zerolinecolor: color("--grid"),
      linecolor: color("--rule"),
      automargin: true,
    });
    return {
      height: narrow ? plain + legend + 20 : Math.max(plain, LEGEND_PX * names + 90),
      margin: { l: 60, r: 16, t: 28, b: 50 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      modebar: { bgcolor: "rgba(0,0,0,0)", color: color("--quiet"), activecolor: color("--link") },
      font: { family: "system-ui, sans-serif", size: 12, color: color("--ink") },
      hovermode: "closest",
      barmode: "group",
      dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
      showlegend: names > 1,
      legend: narrow ? below : { x: 1.01, y: 1 },
      xaxis: axis(view.x),
      yaxis: axis(view.y),
    };
  }

  function draw(plot) {
    const views = charts[plot.dataset.chart].views;
    const view = views[plot.chooser ? Number(plot.chooser.value) : 0];
    const removed = ["sendChartToCloud", "select2d", "lasso2d", "autoScale2d"]; // nothing leaves the page
    const config = { responsive: true, displaylogo: false, plotlyServerURL: "", modeBarButtonsToRemove: removed };
    Plotly.react(plot, traces(view), layout(view, plot.clientWidth), config);
    plot.dataset.drawn = "";
  }

  function choose(plot) {
    const views = charts[plot.dataset.chart].views;
    if (views.length < 2) return;
    const label = document.createElement("label");
    label.className = "views";
    plot.chooser = document.createElement("select");
    views.forEach((view, number) => plot.chooser.add(new Option(view.name, number)));
    plot.chooser.addEventListener("change", () => draw(plot));
    label.append("Shown", plot.chooser);
    plot.before(label);
  }

  const near = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (entry.isIntersecting) {
          near.unobserve(entry.target);
          draw(entry.target);
        }
      }
    },
    { rootMargin: "400px" },
  );
  for (const plot of document.querySelectorAll(".plot")) {
    choose(plot);
    near.observe(plot);
  }
  const redraw = () => document.querySelectorAll(".plot[data-drawn]").forEach(draw);
  dark.addEventListener("change", redraw);
  matchMedia(`(max-width: ${NARROW_PX}px)`).addEventListener("change", redraw);

  let pause;
  technique.addEventListener("input", () => {
    clearTimeout(pause);
    pause = setTimeout(() => {
      for (const { table, column } of tables) if (column >= 0) table.column(column).search(technique.value).draw();
      redraw();
    }, 150);
  });
})();
