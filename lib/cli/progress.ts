import { Presets, SingleBar } from 'cli-progress';
import type { WorkerShare } from '../cluster/fleet.js';
import { formatClock } from '../format.js';
import type { Phase as PipelinePhase } from '../pipeline/session.js';
import { tell, tellsInJson } from './stderr.js';

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

/** A program hears of the progress of a phase so often, in ms. */
const JSON_INTERVAL = 500;

/**
 * Progress on stderr: on a terminal a bar with the time left, and lines above it; elsewhere only the lines. With
 * --json-progress, objects: `{phase, done, total}`, twice a second at most, and those of the lines.
 */
export class Progress {
    readonly #bar =
        process.stderr.isTTY && !tellsInJson()
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
    #told = 0;
    readonly #workers = new Set<string>();

    readonly update = (phase: Phase, done: number, total: number): void => {
        if (tellsInJson() && (phase !== this.#phase || performance.now() - this.#told > JSON_INTERVAL)) {
            this.#told = performance.now();
            tell('', { phase, done, total });
        }
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

    /**
     * Writes a line that stays above the bar.
     * @param event what a program is told in its place
     */
    line(text: string, event: Record<string, unknown>): void {
        if (this.#bar && this.#phase) {
            process.stderr.write('\r\x1b[K');
        }
        tell(text, event);
    }

    /** Tells of workers: a person when one comes, a program whatever changes. */
    workers(workers: readonly WorkerShare[]): void {
        if (tellsInJson()) {
            tell('', { workers });
        }
        for (const { id, device } of workers.filter((one) => !this.#workers.has(one.id))) {
            this.#workers.add(id);
            if (!tellsInJson()) {
                this.line(`the worker ${id} (${device}) takes part`, {});
            }
        }
    }

    stop(): void {
        this.#bar?.stop();
        this.#phase = undefined;
    }
}
