// Why there is no answer, for a person to read; `again` if trying once more may help.
export class Problem extends Error {
  constructor(message, again = false) {
    super(message);
    this.again = again;
  }
}
