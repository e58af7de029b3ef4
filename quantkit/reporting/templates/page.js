"use strict";
(() => {
  const $ = (selector, inside = document) => inside.querySelector(selector);
  const $$ = (selector, inside = document) => [...inside.querySelectorAll(selector)];
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");

  // Theme: the system's until the reader chooses; the choice lasts where the browser lets a local file keep it.
  const themes = ["system", "light", "dark"];
  const button = $("#theme");
  const remembered = () => { try { return localStorage.getItem("quantkit-theme"); } catch { return null; } };
  const remember = (theme) => { try { localStorage.setItem("quantkit-theme", theme); } catch { /* a private window */ } };
  let theme = themes.includes(remembered()) ? remembered() : "system";
  const applyTheme = () => {
    if (theme === "system") delete root.dataset.theme; else root.dataset.theme = theme;
    $("span", button).textContent = theme;
    draw();
  };

  // Plots: one layout for all, coloured by the page's own variables, so that they follow theme and paper.
  const figures = JSON.parse($("#figures").textContent);
  const onPaper = { "--ink": "#000000", "--line": "#999999", "--plot-grid": "#cccccc", "--raised": "#ffffff" };
  const layoutOf = (figure, printed) => {
    const colour = (name) => printed ? onPaper[name] : getComputedStyle(root).getPropertyValue(name).trim();
    const axis = (own) => ({
      gridcolor: colour("--plot-grid"), linecolor: colour("--line"), zerolinecolor: colour("--line"), automargin: true,
      ...own, title: { ...own.title, standoff: 8 },
    });
    return {
      ...figure.layout, xaxis: axis(figure.layout.xaxis), yaxis: axis(figure.layout.yaxis),
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", dragmode: false, hovermode: "closest", showlegend: true,
      font: { color: colour("--ink"), size: printed ? 10 : 12.5, family: getComputedStyle(document.body).fontFamily },
      hoverlabel: { bgcolor: colour("--raised"), font: { color: colour("--ink") }, align: "left" },
      legend: { orientation: "h", x: 0, y: -0.22, yanchor: "top" }, margin: { l: 8, r: 24, t: 8, b: 8 },
    };
  };
  const draw = (printed = false) => {
    for (const [id, figure] of Object.entries(figures)) {
      const box = document.getElementById(id);
      const layout = layoutOf(figure, printed);
      if (printed) Object.assign(layout, { width: box.classList.contains("tall") ? 900 : 320, height: 300 });
      else layout.autosize = true;
      Plotly.react(box, figure.data, layout, { displayModeBar: false, responsive: !printed, staticPlot: printed });
    }
  };
  if (button) {
    button.hidden = false;
    button.addEventListener("click", () => {
      theme = themes[(themes.indexOf(theme) + 1) % themes.length];
      remember(theme);
      applyTheme();
    });
    dark.addEventListener("change", () => draw());
    applyTheme();
  }

  // Paper: everything open, plots in the colours of paper; afterwards as it was.
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = $$("details:not([open])");
    for (const item of opened) item.open = true;
    draw(true);
  });
  addEventListener("afterprint", () => {
    for (const item of opened) item.open = false;
    draw();
  });

  // Sections of artifacts: a link to one opens it.
  const expand = $("#expand");
  expand.hidden = false;
  expand.addEventListener("click", () => {
    const closed = $$("details.artifact:not([open])");
    for (const item of $$("details.artifact")) item.open = closed.length > 0;
    expand.textContent = closed.length > 0 ? "Close all" : "Open all";
  });
  const openTarget = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target instanceof HTMLDetailsElement) { target.open = true; target.scrollIntoView(); }
  };
  addEventListener("hashchange", openTarget);
  openTarget();

  // Table: sorting by a column's own values; results without a place stay last under Score and Place, lines without a value under the rest.
  const table = $("#table");
  if (!table) return;
  const body = table.tBodies[0];
  const lines = [...body.rows];
  const heads = $$("thead th", table);
  const compare = (a, b, kind) => kind === "text"
    ? a.localeCompare(b, "en", { numeric: true, sensitivity: "base" }) : Number(a) - Number(b);
  const sortBy = (head) => {
    const { kind, key } = head.dataset;
    const column = heads.indexOf(head);
    const first = key === "score" || key === "speed" || key === "coverage" ? "descending" : "ascending";
    const other = first === "ascending" ? "descending" : "ascending";
    const order = head.getAttribute("aria-sort") === first ? other : first;
    for (const item of heads) item.setAttribute("aria-sort", item === head ? order : "none");
    const sign = order === "ascending" ? 1 : -1;
    const grouped = key === "score" || key === "place";
    const value = (line) => line.cells[column].dataset.sort;
    const sorted = [...lines].sort((a, b) => {
      if (grouped && a.dataset.board !== b.dataset.board) return a.dataset.board - b.dataset.board;
      if (grouped && a.classList.contains("unranked") !== b.classList.contains("unranked")) return a.classList.contains("unranked") ? 1 : -1;
      if ((value(a) === "") !== (value(b) === "")) return value(a) === "" ? 1 : -1;
      return sign * compare(value(a), value(b), kind) || lines.indexOf(a) - lines.indexOf(b);
    });
    body.append(...sorted);
  };
  for (const head of heads) $("button", head).addEventListener("click", () => sortBy(head));

  const filters = $("#filters");
  const filter = () => {
    const wanted = Object.fromEntries(new FormData(filters));
    const words = wanted.text.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const line of lines) {
      const marks = line.dataset.marks ? line.dataset.marks.split("|") : [];
      const fits = ["task", "method", "peft"].every((key) => !wanted[key] || line.dataset[key] === wanted[key])
        && (!wanted.marks || (wanted.marks === "-" ? marks.length === 0 : marks.includes(wanted.marks)))
        && words.every((word) => line.dataset.words.includes(word));
      line.hidden = !fits;
      shown += fits ? 1 : 0;
    }
    $("#count").textContent = `${shown} of ${lines.length} lines`;
  };
  filters.addEventListener("input", filter);
  filters.addEventListener("submit", (event) => event.preventDefault());
  filter();
})();
