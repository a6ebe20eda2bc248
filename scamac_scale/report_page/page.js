"use strict";
(() => {
  const held = JSON.parse(document.getElementById("report-data").textContent);
  const settings = { displaylogo: false, displayModeBar: false };
  for (const figure of held.figures) {
    Plotly.newPlot(figure.name, figure.plot.data, figure.plot.layout, settings);
  }
  const watch = new ResizeObserver((seen) => seen.forEach(({ target }) => target.data && Plotly.Plots.resize(target)));
  for (const figure of held.figures) watch.observe(document.getElementById(figure.name));
  const cells = held.cells;
  if (!cells) return;

  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer;
  const x = new Float32Array(bytes(cells.x)), y = new Float32Array(bytes(cells.y));
  const row = new Int32Array(bytes(cells.row));
  const confidence = cells.confidence ? new Float32Array(bytes(cells.confidence)) : null;
  const columns = cells.columns.map((column) => ({ ...column, codes: new Uint16Array(bytes(column.codes)) }));
  const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const hasWebgl = (() => {
    try { return Boolean(document.createElement("canvas").getContext("webgl")); } catch (error) { return false; }
  })();
  const kind = hasWebgl && x.length > 3000 ? "scattergl" : "scatter";
  const size = Math.max(2.5, Math.min(7, 260 / Math.sqrt(x.length)));

  const told = (at) => {
    const lines = columns.map((column) => {
      const name = column.names[column.codes[at]];
      return `${escaped(column.title)}: ${name === undefined ? "none" : escaped(name)}`;
    });
    if (confidence) lines.push(`confidence: ${confidence[at].toFixed(3)}`);
    lines.push(`row ${row[at].toLocaleString("en")}`);
    return lines.join("<br>");
  };
  const texts = Array.from(x, (_, at) => told(at));
  const trace = (rows, marker) => ({
    type: kind, mode: "markers", x: rows.map((at) => x[at]), y: rows.map((at) => y[at]),
    text: rows.map((at) => texts[at]), hovertemplate: "%{text}<extra></extra>",
    marker: { size, opacity: 0.8, line: { width: 0 }, ...marker },
  });
  const median = (values) => { const sorted = values.slice().sort((a, b) => a - b); return sorted[sorted.length >> 1]; };

  const byColumn = (column) => {
    const rows = column.names.map(() => []), missing = [];
    column.codes.forEach((code, at) => (code < rows.length ? rows[code] : missing).push(at));
    const data = [], notes = [], legend = [];
    if (missing.length) { data.push(trace(missing, { color: "#dddddd" })); legend.push(["none", "#dddddd"]); }
    rows.forEach((own, code) => {
      if (!own.length) return;
      data.push(trace(own, { color: column.colors[code] }));
      legend.push([column.names[code], column.colors[code]]);
      if (column.is_named && rows.length <= 51 && !(column.has_others && code === rows.length - 1)) {
        notes.push({ x: median(own.map((at) => x[at])), y: median(own.map((at) => y[at])), text: escaped(column.names[code]),
          showarrow: false, font: { size: 12, color: "#24292f" }, bgcolor: "rgba(255,255,255,0.75)", borderpad: 1 });
      }
    });
    return { data, notes, legend };
  };
  const byConfidence = () => {
    const rows = Array.from(x, (_, at) => at).sort((a, b) => confidence[b] - confidence[a]);
    const bar = { title: { text: "confidence", side: "top" }, orientation: "h", y: -0.02, yanchor: "top", thickness: 10, len: 0.6 };
    const marker = { color: rows.map((at) => confidence[at]), colorscale: "Cividis", cmin: 0, cmax: 1, showscale: true, colorbar: bar };
    return { data: [trace(rows, marker)], notes: [], legend: [] };
  };
  const views = columns.map((column) => [column.title, () => byColumn(column)]);
  if (confidence) views.push(["confidence", byConfidence]);

  const axis = { visible: false, zeroline: false, showgrid: false };
  const show = (make) => {
    const { data, notes, legend } = make();
    const layout = { ...held.map_layout, annotations: notes, xaxis: { ...axis, constrain: "domain" },
      yaxis: { ...axis, scaleanchor: "x" }, hovermode: "closest" };
    Plotly.react("map", data, layout, { ...settings, displayModeBar: "hover", scrollZoom: false,
      modeBarButtons: [["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]] });
    const list = document.getElementById("map-legend");
    list.replaceChildren(...legend.map(([name, color]) => {
      const item = document.createElement("li"), mark = document.createElement("i");
      mark.style.background = color;
      item.append(mark, name);
      return item;
    }));
  };
  const buttons = document.getElementById("buttons");
  views.forEach(([title, make], at) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = title;
    button.setAttribute("aria-pressed", String(at === 0));
    button.addEventListener("click", () => {
      for (const other of buttons.children) other.setAttribute("aria-pressed", String(other === button));
      show(make);
    });
    buttons.append(button);
  });
  show(views[0][1]);
  watch.observe(document.getElementById("map"));
})();
