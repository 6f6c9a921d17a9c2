// Before the first paint: the theme that was chosen, so that nothing flashes.
(() => {
  const chosen = localStorage.getItem("xray.theme");
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
})();
