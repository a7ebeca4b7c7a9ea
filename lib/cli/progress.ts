import { Presets, SingleBar } from 'cli-progress';
import { formatClock } from '../format.js';
import type { Phase as PipelinePhase } from '../pipeline/session.js';

/** What is being worked on: a phase of the library's recipes, or of a command's own. */
type Phase = PipelinePhase | 'evaluate';

const phases: Record<Phase, string> = {
    download: 'Downloading',
    load: 'Loading',
    calibrate: 'Calibration',
    search: 'Searching',
    repair: 'Repairing',
    evaluate: 'Evaluating',
    score: 'Scoring',
    write: 'Writing',
    verify: 'Verifying',
    quantize: 'Quantizing',
    speed: 'Speed'
};

/** Shows on stderr how far some work is, and removes that when the work ends, however it ends. */
export async function withProgress<T>(work: (progress: Progress) => Promise<T>): Promise<T> {
    const progress = new Progress();
    try {
        return await work(progress);
    } finally {
        progress.stop();
    }
}

/** Progress on stderr: on a terminal a bar with the time left, and lines above it; elsewhere only the lines. */
export class Progress {
    readonly #bar = process.stderr.isTTY
        ? new SingleBar(
              {
                  format: '{phase} {bar} {percentage} % | {duration_formatted} | {eta_formatted} left',
                  stream: process.stderr,
                  clearOnComplete: true,
                  hideCursor: true,
                  gracefulExit: false, // Ctrl-C is handled in interrupt.ts
                  // while no time is known yet, the bar calls this with text
                  formatTime: (seconds) => (Number.isFinite(seconds) ? formatClock(seconds) : '?'),
                  etaBuffer: 50
              },
              Presets.shades_classic
          )
        : undefined;

    #phase: Phase | undefined;

    readonly update = (phase: Phase, done: number, total: number): void => {
        if (phase !== this.#phase) {
            this.#bar?.stop();
            this.#bar?.start(total, done, { phase: phases[phase].padEnd(11) });
            this.#phase = phase;
        }
        this.#bar?.setTotal(total);
        this.#bar?.update(Math.min(done, total));
    };

    /** Gives what the library calls with the progress of one phase. */
    of(phase: Phase): (done: number, total: number) => void {
        return (done, total) => this.update(phase, done, total);
    }

    /** Writes a line that stays above the bar. */
    line(text: string): void {
        if (this.#bar && this.#phase) {
            process.stderr.write('\r\x1b[K');
        }
        process.stderr.write(`${text}\n`);
    }

    stop(): void {
        this.#bar?.stop();
        this.#phase = undefined;
    }
}
