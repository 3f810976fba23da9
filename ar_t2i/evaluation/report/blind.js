"use strict";
const { columns, pairs, name } = JSON.parse(document.querySelector("#data").textContent);
const at = (id) => document.querySelector(id);
const votes = [];
const quoted = (value) => `"${String(value).replaceAll('"', '""')}"`;
const csv = () => {
  const rows = votes.map((choice, i) => columns.map((column) => quoted(column === "choice" ? choice : pairs[i][column])));
  return [columns, ...rows].map((row) => row.join(",")).join("\r\n") + "\r\n";
};
const show = () => {
  const done = votes.length === pairs.length;
  const pair = pairs[votes.length];
  at("#prompt").textContent = done ? "Done, thank you. Save the votes." : pair.prompt;
  at("#left img").src = done ? "data:," : pair.left_picture;
  at("#right img").src = done ? "data:," : pair.right_picture;
  document.body.classList.toggle("done", done);
  for (const id of ["#left", "#right", "#tie"]) at(id).disabled = done;
  at("#undo").disabled = votes.length === 0;
  at("#count").textContent = `${votes.length} of ${pairs.length}`;
  at("#progress i").style.width = `${(100 * votes.length) / pairs.length}%`;
  at("#save").href = "data:text/csv;charset=utf-8," + encodeURIComponent(csv());
  at("#save").download = name;
};
const vote = (choice) => {
  if (votes.length < pairs.length) votes.push(choice);
  show();
};
const undo = () => {
  votes.pop();
  show();
};
const keys = {
  ArrowLeft: () => vote("left"), ArrowRight: () => vote("right"), ArrowDown: () => vote("tie"), Backspace: undo,
  a: () => vote("left"), d: () => vote("right"), s: () => vote("tie"), u: undo,
};
document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
  event.preventDefault();
  keys[event.key]();
});
at("#left").addEventListener("click", () => vote("left"));
at("#right").addEventListener("click", () => vote("right"));
at("#tie").addEventListener("click", () => vote("tie"));
at("#undo").addEventListener("click", undo);
at("#theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.style.colorScheme ? root.style.colorScheme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.style.colorScheme = dark ? "light" : "dark";
});
addEventListener("beforeunload", (event) => {
  if (votes.length) event.preventDefault();
});
show();
