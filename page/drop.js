// Files that are dropped on this component go to the upload button of the element 'props.drop'.
if (props.drop) {
  for (const name of ['dragover', 'dragleave', 'drop']) {
    element.addEventListener(name, (event) => {
      event.preventDefault();
      element.classList.toggle('ddn-dragged', name === 'dragover');
      if (name !== 'drop' || !event.dataTransfer.files.length) return;
      const input = document.getElementById(props.drop).previousElementSibling;
      input.files = event.dataTransfer.files;
      input.dispatchEvent(new Event('change', { bubbles: true }));
    });
  }
}
