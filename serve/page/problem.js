// Why there is no prediction, as a text for the user. `canRetry`: whether another attempt may succeed.
export class Problem extends Error {
  constructor(message, canRetry = false) {
    super(message);
    this.canRetry = canRetry;
  }
}
