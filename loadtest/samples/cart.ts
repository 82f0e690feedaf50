// A shopping cart with discounts, for the demo: real code, small enough to read at a glance.

export interface Item {
  name: string;
  priceCents: number;
  quantity: number;
}

export interface Discount {
  code: string;
  percent: number;
  minimumCents: number;
}

export class Cart {
  private items: Item[] = [];
  private discounts: Discount[] = [];

  add(item: Item): void {
    const existing = this.items.find((other) => other.name === item.name);
    if (existing) {
      existing.quantity += item.quantity;
      return;
    }
    this.items.push({ ...item });
  }

  remove(name: string): boolean {
    const index = this.items.findIndex((item) => item.name === name);
    if (index < 0) {
      return false;
    }
    this.items.splice(index, 1);
    return true;
  }

  subtotalCents(): number {
    return this.items.reduce((sum, item) => sum + item.priceCents * item.quantity, 0);
  }

  apply(discount: Discount): void {
    if (discount.percent <= 0 || discount.percent > 100) {
      throw new RangeError(`percent is ${discount.percent}; expected above 0 and at most 100`);
    }
    this.discounts.push(discount);
  }

  totalCents(): number {
    const subtotal = this.subtotalCents();
    let total = subtotal;
    for (const discount of this.discounts) {
      if (subtotal >= discount.minimumCents) {
        total -= Math.round((subtotal * discount.percent) / 100);
      }
    }
    return Math.max(0, total);
  }

  isEmpty(): boolean {
    return this.items.length === 0;
  }
}

export function formatCents(cents: number, currency = "EUR"): string {
  const sign = cents < 0 ? "-" : "";
  const whole = Math.floor(Math.abs(cents) / 100);
  const rest = String(Math.abs(cents) % 100).padStart(2, "0");
  return `${sign}${whole}.${rest} ${currency}`;
}
